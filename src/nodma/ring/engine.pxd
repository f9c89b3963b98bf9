# The types of engine.py when it is compiled. Nothing but types.

cimport cython

cimport nodma.ring.atomics as atomics
cimport nodma.ring.syscalls as syscalls
from nodma.ring.device_end cimport Batch, DeviceRing

cdef int _IDLE, _BUSY, _FAULT, _PAUSED
cdef unsigned int _BATCH, _LARGE_BATCH, _TURNS, _POLLS_PER_CLOCK_READ
cdef int _FOREVER, _HOLD_MILLISECONDS
cdef long long _SPIN_BEFORE_YIELD_NS, _SHRINK

cdef class QueueEngine:
    cdef readonly DeviceRing ring
    cdef readonly Batch batch
    cdef public int signal_fd
    cdef public int wakeup_fd
    cdef public bint wanted
    cdef readonly bint signalling
    cdef public bint gave_up
    cdef readonly unsigned long long requests
    cdef readonly unsigned long long interrupts
    cdef readonly unsigned int outstanding
    cdef unsigned short[::1] _pause
    cdef unsigned short[::1] _call
    cdef unsigned short[::1] _cancel
    cdef long long _max_poll_ns
    cdef long long _poll_ns
    cdef object _epoll_object
    cdef int _epoll

    cdef void handle(self, unsigned int count) noexcept nogil
    cdef void helper_main(self) noexcept nogil
    cdef unsigned int collect(self) noexcept nogil

    @cython.locals(count=int)
    cdef int take_turns(self, unsigned int turns) noexcept nogil
    cdef void publish_and_interrupt(self) noexcept nogil
    @cython.locals(state=int)
    cdef int loop(self) noexcept nogil
    cdef bint _is_cancelled(self) noexcept nogil
    cdef void begin_call(self) noexcept nogil
    cdef bint end_call(self) noexcept nogil
    cdef bint _paused(self) noexcept nogil
    @cython.locals(begin="long long", now="long long")
    cdef bint _poll_ring(self) noexcept nogil
    @cython.locals(begin="long long")
    cdef void _wait(self) noexcept nogil
