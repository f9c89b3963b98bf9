# The types of driver_end.py when it is compiled. Nothing but types: the checks are in the .py, once.

cimport cython

cimport nodma.ring.atomics as atomics

cdef class DriverRing:
    cdef unsigned long long[::1] _table
    cdef unsigned short[::1] _avail
    cdef unsigned short[::1] _used_head
    cdef unsigned int[::1] _used_ring
    cdef unsigned long long[::1] _tables
    cdef unsigned long long _tables_address
    cdef unsigned int _table_entries
    cdef unsigned int _size
    cdef unsigned int _mask
    cdef unsigned long long _base
    cdef bint _event_idx
    cdef unsigned short _added
    cdef unsigned short _published
    cdef unsigned short _seen
    cdef unsigned int _outstanding
    cdef list _free
    cdef list _tokens
    cdef list _capacity
    cdef list _chains

    @cython.locals(
        parts="unsigned int", indirect=bint, base="unsigned long long", capacity="unsigned long long",
        head="unsigned int", table="unsigned long long[::1]", at="unsigned int", word="unsigned long long",
        following="unsigned long long", offset="unsigned long long", length="unsigned long long",
        index="unsigned int", left="unsigned int", write="unsigned long long", free=list,
    )
    cpdef bint add(self, readable, writable, token)

    @cython.locals(added="unsigned short", before="unsigned short", event="unsigned short")
    cpdef bint publish(self)

    @cython.locals(
        seen="unsigned short", ahead="unsigned int", at="unsigned int", head="unsigned int",
        written="unsigned int", done=list,
    )
    cpdef list reap(self, unsigned int most)
