# The types of device_end.py when it is compiled. Nothing but types: the checks are in the .py, once.

cimport cython

cimport nodma.ring.atomics as atomics

cdef unsigned int _NEXT
cdef unsigned int _WRITE
cdef unsigned int _INDIRECT
cdef unsigned int _DESC_BYTES
cdef unsigned long long CHAIN_BYTES_LIMIT
cdef int _NO_FAULT, _AHEAD, _INDEX, _OUTSIDE, _NESTED, _TABLE, _ORDER, _LOOP, _LONG
cdef unsigned int _NO_INTERRUPT
cdef unsigned int _NO_NOTIFY

cdef class Request:
    cdef readonly unsigned int head
    cdef readonly list readable
    cdef readonly list writable
    cdef public unsigned int written

cdef class Batch:
    cdef readonly unsigned int chains
    cdef readonly unsigned int parts
    cdef readonly unsigned short[::1] heads
    cdef readonly unsigned int[::1] begins
    cdef readonly unsigned int[::1] readable
    cdef readonly unsigned long long[::1] offsets
    cdef readonly unsigned int[::1] lengths
    cdef readonly int fault
    cdef unsigned int fault_head
    cdef unsigned int fault_index
    cdef unsigned int fault_entries
    cdef unsigned int fault_flags
    cdef unsigned long long fault_address
    cdef unsigned long long fault_length

@cython.final
cdef class DeviceRing:
    cdef object _bytes
    cdef readonly unsigned char[::1] memory
    cdef unsigned short[::1] _avail
    cdef unsigned short[::1] _used_head
    cdef unsigned int[::1] _used_ring
    cdef unsigned long long _table
    cdef unsigned int _size
    cdef unsigned int _mask
    cdef unsigned int _room
    cdef bint _event_idx
    cdef bint _indirect
    cdef unsigned short _seen
    cdef unsigned short _used
    cdef unsigned short _signalled
    cdef Batch _batch
    cdef public unsigned long long base
    cdef readonly long long first
    cdef readonly long long limit

    @cython.locals(
        batch=Batch, count=int, requests=list, window=object, number=int, at="unsigned int", middle="unsigned int",
        end="unsigned int", offset="unsigned long long", readable=list, writable=list,
    )
    cpdef list pop(self, unsigned int most)

    @cython.locals(seen="unsigned int", ahead="unsigned int", done="unsigned int")
    cpdef int fetch_chains(self, Batch batch, unsigned int most) noexcept nogil

    @cython.locals(
        memory="const unsigned char[::1]", avail="unsigned short[::1]", mask="unsigned int", room="unsigned int",
        base="unsigned long long", first="long long", limit="long long", indirect=bint,
        offsets="unsigned long long[::1]", lengths="unsigned int[::1]", parts="unsigned int", seen="unsigned int",
        fault=int, at="unsigned int", chain="unsigned int", head="unsigned int", index="unsigned int",
        table="unsigned long long", entries="unsigned int", total="unsigned long long", inside=bint, writing=bint,
        begin="unsigned int", middle="unsigned int", address="unsigned long long", length="long long",
        flags="unsigned int", offset="long long",
    )
    cdef unsigned int _walk(self, Batch batch, unsigned int count) noexcept nogil
    cpdef explain(self, Batch batch)
    cdef _bad_table(self, unsigned int head, bint inside, unsigned int flags, long long length)
    cdef _outside(self, unsigned int head, unsigned long long address, long long length, unsigned int flags)

    @cython.locals(used="unsigned short", at="unsigned int")
    cpdef void add_used(self, unsigned int head, unsigned int written) noexcept nogil

    @cython.locals(ring="unsigned int[::1]", used="unsigned short", mask="unsigned int", at="unsigned int", request=Request)
    cpdef push(self, list done)

    @cython.locals(used="unsigned short", before="unsigned short", event="unsigned short")
    cpdef bint publish(self) noexcept nogil

    cpdef unsigned int available(self) noexcept nogil
    cpdef bint pending(self) noexcept nogil
    cpdef bint arm(self) noexcept nogil
    cpdef void disarm(self) noexcept nogil
