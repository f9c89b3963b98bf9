# The types of stream.py when it is compiled. Nothing but types: the checks are in the .py, once.

cimport cython

cimport nodma.vfio_user.socket_io as socket_io

cdef int _WAIT
cdef int _NOW
cdef size_t _ANCILLARY
cdef Py_ssize_t _HEADER_BYTES
cdef Py_ssize_t _ACCESS_BYTES
cdef unsigned int _READ
cdef unsigned int _WRITE
cdef unsigned int _NO_REPLY
cdef unsigned int _REPLY
cdef unsigned int _REPLY_ERROR

cdef class Connection:
    cdef readonly object sock
    cdef object _descriptors
    cdef int _handle
    cdef readonly unsigned long long messages_seen
    cdef readonly bytearray _buffer
    cdef unsigned char[::1] _bytes
    cdef Py_ssize_t _begin
    cdef Py_ssize_t _end
    cdef Py_ssize_t _skip
    cdef object _fds
    cdef list _received_fds
    cdef readonly object _out

    @cython.locals(count="Py_ssize_t")
    cpdef bint receive(self, bint wait=*) except -1

    cpdef bint serve_accesses(self, endpoint, long long limit, double until) except -1

    @cython.locals(
        begin="Py_ssize_t", end="Py_ssize_t", msg_id="unsigned short", command="unsigned short", size="Py_ssize_t",
        flags="unsigned int", offset="unsigned long long", region="unsigned int", count="unsigned int",
        data=bytes, answer=bytes, sent="Py_ssize_t",
    )
    cpdef bint answer_accesses(self, endpoint, long long limit, double until) except -1

    @cython.locals(count="Py_ssize_t")
    cpdef send(self, message, fds=*)

    cdef Py_ssize_t _try(self, message, fds) except -1
    cdef _take_fds(self, Py_ssize_t end)
    cdef _compact(self)
    cdef _make_room(self, Py_ssize_t size)
