# How a connection receives and sends, compiled. sockets.py tells what each is for.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EINTR, errno

cdef extern from *:
    """
    #include <errno.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <time.h>
    #define NODMA_KERNEL_MOST 253  /* descriptors that the kernel lets one message carry, SCM_MAX_FD */
    typedef struct { uint16_t msg_id, command; uint32_t size, flags, error; uint64_t offset; uint32_t region, count; }
        nodma_access;
    static inline nodma_access nodma_load_access(const unsigned char *at) {
        nodma_access a;
        memcpy(&a, at, sizeof a);
        return a;
    }
    static inline double nodma_now(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec + now.tv_nsec * 1e-9;
    }
    static inline Py_ssize_t nodma_receive(
        int sock, unsigned char *at, size_t room, int flags, size_t ancillary, int *fds, unsigned *count
    ) {
        union { char bytes[CMSG_SPACE(NODMA_KERNEL_MOST * sizeof(int))]; struct cmsghdr align; } control;
        struct iovec part = {at, room};
        struct msghdr message = {0};
        struct cmsghdr *head;
        Py_ssize_t got;
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes;
        message.msg_controllen = ancillary < sizeof control ? ancillary : sizeof control;
        got = recvmsg(sock, &message, flags);
        *count = 0;
        if (got < 0)
            return got;
        for (head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head))
            if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
                unsigned more = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                if (more > NODMA_KERNEL_MOST - *count)
                    more = NODMA_KERNEL_MOST - *count;
                memcpy(fds + *count, CMSG_DATA(head), more * sizeof(int));
                *count += more;
            }
        return got;
    }
    """
    ctypedef struct nodma_access:
        unsigned short msg_id
        unsigned short command
        unsigned int size
        unsigned int flags
        unsigned int error
        unsigned long long offset
        unsigned int region
        unsigned int count
    double nodma_now() noexcept nogil
    Py_ssize_t c_send "send"(int sock, const void *at, size_t size, int flags) noexcept nogil
    nodma_access nodma_load_access(const unsigned char *at) noexcept nogil
    Py_ssize_t nodma_receive(
        int sock, unsigned char *at, size_t room, int flags, size_t ancillary, int *fds, unsigned int *count
    ) noexcept nogil

cdef inline (
    unsigned short, unsigned short, unsigned int, unsigned int, unsigned int, unsigned long long, unsigned int, unsigned int
) load_access(const unsigned char[::1] buffer, Py_ssize_t at) noexcept:
    cdef nodma_access a = nodma_load_access(&buffer[at])
    return a.msg_id, a.command, a.size, a.flags, a.error, a.offset, a.region, a.count

cdef inline double now() noexcept:
    return nodma_now()

cdef inline int handle(object sock) except -1:
    return sock.fileno()

cdef inline bytes pack_access(
    unsigned short msg_id, unsigned short command, unsigned int size, unsigned int flags, unsigned int error,
    unsigned long long offset, unsigned int region, unsigned int count
):
    cdef nodma_access made
    made.msg_id, made.command, made.size, made.flags, made.error = msg_id, command, size, flags, error
    made.offset, made.region, made.count = offset, region, count
    return PyBytes_FromStringAndSize(<const char *>&made, sizeof(made))

cdef inline Py_ssize_t send(int sock, message, int flags) except -1:
    cdef const unsigned char[::1] view
    cdef Py_ssize_t sent
    if PyBytes_CheckExact(message):
        sent = c_send(sock, PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message), flags)
    else:
        view = message
        sent = c_send(sock, &view[0], view.shape[0], flags)
    if sent < 0:
        PyErr_SetFromErrno(OSError)
    return sent

cdef inline Py_ssize_t receive(
    int sock, unsigned char[::1] buffer, Py_ssize_t at, int flags, size_t ancillary, list fds
) except -1:
    cdef int[253] came
    cdef unsigned int count = 0
    cdef unsigned int each
    cdef size_t room = buffer.shape[0] - at
    cdef Py_ssize_t got
    while True:
        with nogil:
            got = nodma_receive(sock, &buffer[at], room, flags, ancillary, came, &count)
        if got >= 0:
            break
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()
    for each in range(count):
        fds.append(came[each])
    return got
