# The system calls of a queue's path, compiled. syscalls.py tells what each is for.

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <sched.h>
    #include <stdint.h>
    #include <sys/epoll.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    #define NODMA_IOV 1024
    #define NODMA_TRANSFER(name, one, call)                                                                          \
    static int64_t name(int fd, unsigned char *memory, const unsigned long long *offsets, const unsigned *lengths,  \
                        unsigned count, int64_t at, int flags) {                                                     \
        struct iovec iov[NODMA_IOV];                                                                                 \
        ssize_t done;                                                                                                \
        unsigned part;                                                                                               \
        if (count == 1 && !flags) {                                                                                  \
            do done = one(fd, memory + offsets[0], lengths[0], at); while (done < 0 && errno == EINTR);              \
            return done < 0 ? -errno : done;                                                                         \
        }                                                                                                            \
        if (count > NODMA_IOV)                                                                                       \
            count = NODMA_IOV;                                                                                       \
        for (part = 0; part < count; part++) {                                                                       \
            iov[part].iov_base = memory + offsets[part];                                                             \
            iov[part].iov_len = lengths[part];                                                                       \
        }                                                                                                            \
        do done = call(fd, iov, count, at, flags); while (done < 0 && errno == EINTR);                               \
        return done < 0 ? -errno : done;                                                                             \
    }
    /* No cancellation points, as the C library's are: nobody cancels these threads, and the bookkeeping shows. */
    #define NODMA_CALL_V2(number, fd, iov, count, at, flags) \
        syscall(number, fd, iov, (long)(count), (long)(at), 0L, flags)
    #define nodma_pread(fd, at, length, offset) syscall(SYS_pread64, fd, at, (size_t)(length), offset)
    #define nodma_pwrite(fd, at, length, offset) syscall(SYS_pwrite64, fd, at, (size_t)(length), offset)
    #define nodma_preadv2(fd, iov, count, at, flags) NODMA_CALL_V2(SYS_preadv2, fd, iov, count, at, flags)
    #define nodma_pwritev2(fd, iov, count, at, flags) NODMA_CALL_V2(SYS_pwritev2, fd, iov, count, at, flags)
    NODMA_TRANSFER(nodma_read, nodma_pread, nodma_preadv2)
    NODMA_TRANSFER(nodma_write, nodma_pwrite, nodma_pwritev2)

    static inline int64_t nodma_size(int fd) {
        off_t end = lseek(fd, 0, SEEK_END);
        return end < 0 ? -errno : end;
    }
    static inline int nodma_signal(int fd) {
        uint64_t one = 1;
        return write(fd, &one, sizeof one) < 0 ? -errno : 0;
    }
    static inline int64_t nodma_post(int fd, uint32_t number) {
        return write(fd, &number, sizeof number) < 0 ? -errno : (int64_t)sizeof number;
    }
    static inline int64_t nodma_take(int fd) {
        uint32_t number;
        ssize_t got;
        do got = read(fd, &number, sizeof number); while (got < 0 && errno == EINTR);
        return got < 0 ? -errno : got ? (int64_t)number : -EIO;
    }
    static inline int nodma_wait(int fd, int milliseconds) {
        struct epoll_event news[8];
        return epoll_wait(fd, news, 8, milliseconds);
    }
    static inline int64_t nodma_now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static inline void nodma_relax(void) {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ __volatile__("yield" ::: "memory");
    #endif
    }
    """
    int EAGAIN
    int EINTR
    int EINVAL
    int EIO
    int EOPNOTSUPP
    int NOWAIT "RWF_NOWAIT"
    int DSYNC "RWF_DSYNC"
    long long nodma_read(int, unsigned char *, const unsigned long long *, const unsigned int *, unsigned int,
                         long long, int) noexcept nogil
    long long nodma_write(int, unsigned char *, const unsigned long long *, const unsigned int *, unsigned int,
                          long long, int) noexcept nogil
    long long nodma_size(int) noexcept nogil
    int nodma_signal(int) noexcept nogil
    long long nodma_post(int, unsigned int) noexcept nogil
    long long nodma_take(int) noexcept nogil
    int nodma_wait(int, int) noexcept nogil
    long long nodma_now() noexcept nogil
    void nodma_relax() noexcept nogil
    int sched_yield() noexcept nogil

cdef inline long long read(
    int fd, unsigned char[::1] memory, unsigned long long[::1] offsets, unsigned int[::1] lengths, unsigned int first,
    unsigned int count, long long at, int flags,
) noexcept nogil:
    return nodma_read(fd, &memory[0], &offsets[first], &lengths[first], count, at, flags)

cdef inline long long write(
    int fd, unsigned char[::1] memory, unsigned long long[::1] offsets, unsigned int[::1] lengths, unsigned int first,
    unsigned int count, long long at, int flags,
) noexcept nogil:
    return nodma_write(fd, &memory[0], &offsets[first], &lengths[first], count, at, flags)

cdef inline long long size(int fd) noexcept nogil:
    return nodma_size(fd)

cdef inline int signal(int fd) noexcept nogil:
    return nodma_signal(fd)

cdef inline long long post(int fd, unsigned int number) noexcept nogil:
    return nodma_post(fd, number)

cdef inline long long take(int fd) noexcept nogil:
    return nodma_take(fd)

cdef inline int wait(int epoll, int milliseconds) noexcept nogil:
    return nodma_wait(epoll, milliseconds)

cdef inline int handle(object epoll):
    return epoll.fileno()

cdef inline long long now() noexcept nogil:
    return nodma_now()

cdef inline void relax() noexcept nogil:
    nodma_relax()

cdef inline void give_way() noexcept nogil:
    sched_yield()
