# The types of device_end.py when it is compiled. Nothing but types: the checks are in the .py, once.

cimport cython

cimport nodma.ring.fences as fences

cdef class DeviceRing:
    cdef object _bytes
    cdef unsigned short[::1] _avail
    cdef unsigned short[::1] _used_head
    cdef unsigned int[::1] _used_ring
    cdef unsigned long long[::1] _table
    cdef unsigned int _size
    cdef unsigned int _mask
    cdef bint _event_idx
    cdef bint _indirect
    cdef unsigned short _seen
    cdef unsigned short _used
    cdef unsigned short _signalled
    cdef public unsigned long long base
    cdef readonly unsigned long long first
    cdef readonly unsigned long long limit
    cdef object _bad

    @cython.locals(
        avail="unsigned short[::1]", seen="unsigned int", ahead="unsigned int", count="unsigned int",
        mask="unsigned int", i="unsigned int", batch=list,
    )
    cpdef list pop(self, unsigned int most)

    @cython.locals(
        memory=object, table="unsigned long long[::1]", count="unsigned int", index="unsigned int",
        base="unsigned long long", first="unsigned long long", limit="unsigned long long",
        room="unsigned int", total="unsigned long long", inside=bint, readable=list, writable=list,
        addr="unsigned long long", word="unsigned long long", offset="unsigned long long",
        length="unsigned long long", flags="unsigned int",
    )
    cdef object _chain(self, unsigned int head)
    cdef _check_indirect(self, unsigned int head, bint inside, unsigned int flags, unsigned long long length)

    @cython.locals(at="unsigned int")
    cpdef push(self, unsigned int head, unsigned int written)

    @cython.locals(used="unsigned short", before="unsigned short", event="unsigned short")
    cpdef bint publish(self)
