# Enter an engine's loop without Python's lock. without_gil.py tells what each is for.

from nodma.ring.engine cimport QueueEngine

cdef inline int loop(QueueEngine engine):
    cdef int state
    with nogil:
        state = engine.loop()
    return state

cdef inline void helper_main(QueueEngine engine):
    with nogil:
        engine.helper_main()
