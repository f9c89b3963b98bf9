# Memory ordering between the two ends of a ring, compiled. fences.py tells what each is for.

cdef extern from *:
    """
    #include <stdint.h>
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
    unsigned short nodma_load_acquire(const unsigned short *at) noexcept nogil
    void nodma_store_release(unsigned short *at, unsigned short value) noexcept nogil
    void nodma_full_fence() noexcept nogil

cdef inline unsigned short load_acquire(unsigned short[::1] words, Py_ssize_t index) noexcept:
    return nodma_load_acquire(&words[index])

cdef inline void store_release(unsigned short[::1] words, Py_ssize_t index, unsigned short value) noexcept:
    nodma_store_release(&words[index], value)

cdef inline void full_fence() noexcept:
    nodma_full_fence()
