# The types of blk_engine.py when it is compiled. Nothing but types: the checks are in the .py, once.

cimport cython

cimport nodma.ring.atomics as atomics
cimport nodma.ring.syscalls as syscalls
from nodma.ring.device_end cimport Batch
from nodma.ring.engine cimport QueueEngine

cdef unsigned int _SECTOR, _HEADER_BYTES, _KIND_MASK, _IN, _OUT, _FLUSH, _OK, _IOERR, _JOBS, _JOB_PARTS, _PAGE

cdef class BlockEngine(QueueEngine):
    cdef object _handle_rare
    cdef object _sync_image
    cdef object _name
    cdef object _window
    cdef unsigned char[::1] _lost
    cdef int _fd
    cdef int _buffered_fd
    cdef readonly unsigned long long sectors
    cdef long long _max_request
    cdef bint _read_only
    cdef bint _inline
    cdef bint _in_memory
    cdef long long _file_size
    cdef public bint durable
    cdef bint _helped
    cdef int _nowait
    cdef unsigned char[::1] _memory
    cdef unsigned char[::1] _header
    cdef readonly unsigned long long reads
    cdef readonly unsigned long long bytes_read
    cdef readonly unsigned long long writes
    cdef readonly unsigned long long bytes_written
    cdef readonly unsigned long long flushes
    cdef readonly unsigned long long errors
    cdef int _work_reader
    cdef int _work_writer
    cdef int _done_reader
    cdef int _done_writer
    cdef unsigned int[::1] _job_kind
    cdef unsigned int[::1] _job_head
    cdef unsigned int[::1] _job_readable
    cdef unsigned int[::1] _job_parts
    cdef unsigned int[::1] _job_result
    cdef unsigned int[::1] _job_written
    cdef unsigned long long[::1] _job_status
    cdef unsigned long long[::1] _job_sector
    cdef unsigned long long[::1] _job_length
    cdef unsigned long long[::1] _job_offsets
    cdef unsigned int[::1] _job_lengths
    cdef unsigned int[::1] _free
    cdef unsigned int _free_jobs

    @cython.locals(number="long long")
    cdef void helper_main(self) noexcept nogil
    @cython.locals(kind="unsigned int", first="unsigned int", parts="unsigned int")
    cdef void _do(self, unsigned int number) noexcept nogil
    @cython.locals(found="unsigned int", number="long long")
    cdef unsigned int collect(self) noexcept nogil
    @cython.locals(
        memory="unsigned char[::1]", offsets="unsigned long long[::1]", lengths="unsigned int[::1]",
        begins="unsigned int[::1]", readable="unsigned int[::1]", heads="unsigned short[::1]", end="unsigned int",
        number="unsigned int", begin="unsigned int", head="unsigned int", middle="unsigned int", last="unsigned int",
        left="unsigned int", status="unsigned long long", stop="unsigned int", word="unsigned long long",
        sector="unsigned long long", kind="unsigned int", result="unsigned int", written="unsigned int",
    )
    cdef void handle(self, unsigned int count) noexcept nogil
    @cython.locals(
        offsets="unsigned long long[::1]", lengths="unsigned int[::1]", part="unsigned int", at="unsigned int",
    )
    cdef bint _gather(self, unsigned int begin, unsigned int middle) noexcept nogil
    @cython.locals(
        offsets="unsigned long long[::1]", lengths="unsigned int[::1]", length="long long", part="unsigned int",
        count="unsigned long long", at="long long", done="long long", result="unsigned int",
    )
    cdef void _move(
        self, unsigned int kind, unsigned int head, unsigned long long sector, unsigned long long status,
        unsigned int first, unsigned int last,
    ) noexcept nogil
    @cython.locals(fd=int, flags=int, done="long long")
    cdef unsigned int _transfer(
        self, unsigned int kind, unsigned long long[::1] offsets, unsigned int[::1] lengths, unsigned int first,
        unsigned int count, long long at, unsigned long long left,
    ) noexcept nogil
    cdef unsigned int _sync(self) noexcept with gil
    @cython.locals(
        offsets="unsigned long long[::1]", lengths="unsigned int[::1]", count="unsigned int", number="unsigned int",
        part="unsigned int",
    )
    cdef bint _offload(
        self, unsigned int kind, unsigned int head, unsigned long long sector, unsigned long long length,
        unsigned long long status, unsigned int first, unsigned int readable, unsigned int last,
    ) noexcept nogil
    cdef void _complete(
        self, unsigned int kind, unsigned int head, unsigned long long status, unsigned int result,
        unsigned long long length, unsigned int written,
    ) noexcept nogil
    cdef (unsigned int, unsigned int) _do_rare(
        self, unsigned int kind, unsigned int head, unsigned long long[::1] offsets, unsigned int[::1] lengths,
        unsigned int first, unsigned int readable, unsigned int count,
    ) noexcept with gil
    cdef void _complain(self, int error) noexcept with gil
