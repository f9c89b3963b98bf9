# Enter a path's loop without Python's lock. release.py tells what each is for.

from nodma.ring.path cimport QueuePath

cdef inline int loop(QueuePath path):
    cdef int state
    with nogil:
        state = path.loop()
    return state

cdef inline void work(QueuePath path):
    with nogil:
        path.work()
