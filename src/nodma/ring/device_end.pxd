# The types of device_end.py when it is compiled. Nothing but types: the checks are in the .py, once.

cimport cython

cimport nodma.ring.shared as shared

cdef unsigned int _NEXT
cdef unsigned int _WRITE
cdef unsigned int _INDIRECT
cdef unsigned int _DESC_BYTES

cdef class Request:
    cdef readonly unsigned int head
    cdef readonly list readable
    cdef readonly list writable
    cdef public unsigned int written

cdef class DeviceRing:
    cdef object _bytes
    cdef unsigned short[::1] _avail
    cdef unsigned short[::1] _used_head
    cdef unsigned int[::1] _used_ring
    cdef const unsigned char[::1] _memory
    cdef unsigned long long _table
    cdef unsigned int _size
    cdef unsigned int _mask
    cdef unsigned int _room
    cdef bint _event_idx
    cdef bint _indirect
    cdef unsigned short _seen
    cdef unsigned short _used
    cdef unsigned short _signalled
    cdef public unsigned long long base
    cdef readonly long long first
    cdef readonly long long limit

    @cython.locals(seen="unsigned int", ahead="unsigned int", batch=list)
    cpdef list pop(self, unsigned int most)

    @cython.locals(
        window=object, memory="const unsigned char[::1]", avail="unsigned short[::1]", mask="unsigned int",
        room="unsigned int", base="unsigned long long", first="long long", limit="long long",
        place="unsigned int", head="unsigned int", index="unsigned int", table="unsigned long long",
        entries="unsigned int", total="unsigned long long", inside=bint, readable=list, writable=list,
        address="unsigned long long", length="long long", flags="unsigned int", offset="long long",
        indirect=bint,
    )
    cdef _take(self, list batch, unsigned int count)
    cdef _bad_table(self, unsigned int head, bint inside, unsigned int flags, long long length)
    cdef _outside(self, unsigned int head, unsigned long long address, long long length, unsigned int flags)

    @cython.locals(ring="unsigned int[::1]", used="unsigned short", mask="unsigned int", at="unsigned int", request=Request)
    cpdef push(self, list done)

    @cython.locals(used="unsigned short", before="unsigned short", event="unsigned short")
    cpdef bint publish(self)
