# How the ring reads and orders shared memory, compiled. atomics.py tells what each is for.

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    typedef struct { uint64_t addr; uint32_t len; uint16_t flags, next; } nodma_descriptor;
    static inline nodma_descriptor nodma_load_descriptor(const unsigned char *at) {
        nodma_descriptor d;
        memcpy(&d, at, sizeof d);  /* a table may lie at any address; nothing is read twice */
        __asm__ __volatile__("" ::: "memory");
        return d;
    }
    static inline uint64_t nodma_load_word(const unsigned char *at) {
        uint64_t word;
        memcpy(&word, at, sizeof word);
        __asm__ __volatile__("" ::: "memory");
        return word;
    }
    static inline uint16_t nodma_load_acquire(const uint16_t *at) {
        return __atomic_load_n(at, __ATOMIC_ACQUIRE);
    }
    static inline void nodma_store_release(uint16_t *at, uint16_t value) {
        __atomic_store_n(at, value, __ATOMIC_RELEASE);
    }
    static inline void nodma_full_fence(void) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    """
    ctypedef struct nodma_descriptor:
        unsigned long long addr
        unsigned int len
        unsigned short flags
        unsigned short next
    nodma_descriptor nodma_load_descriptor(const unsigned char *at) noexcept nogil
    unsigned long long nodma_load_word(const unsigned char *at) noexcept nogil
    unsigned short nodma_load_acquire(const unsigned short *at) noexcept nogil
    void nodma_store_release(unsigned short *at, unsigned short value) noexcept nogil
    void nodma_full_fence() noexcept nogil

cdef inline unsigned short load_acquire(unsigned short[::1] words, Py_ssize_t index) noexcept nogil:
    return nodma_load_acquire(&words[index])

cdef inline void store_release(unsigned short[::1] words, Py_ssize_t index, unsigned short value) noexcept nogil:
    nodma_store_release(&words[index], value)

cdef inline void full_fence() noexcept nogil:
    nodma_full_fence()

cdef inline (unsigned long long, unsigned int, unsigned short, unsigned short) load_descriptor(
    const unsigned char[::1] memory, unsigned long long at
) noexcept nogil:
    cdef nodma_descriptor d = nodma_load_descriptor(&memory[at])
    return d.addr, d.len, d.flags, d.next

cdef inline (unsigned long long, unsigned long long) load_pair(
    const unsigned char[::1] memory, unsigned long long at
) noexcept nogil:
    return nodma_load_word(&memory[at]), nodma_load_word(&memory[at + 8])

cdef inline object numbers(str code, Py_ssize_t count):
    return memoryview(bytearray(8 * count)).cast(code)[:count]
