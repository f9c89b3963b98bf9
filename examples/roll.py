"""The driver of dice.py: probe, negotiate, roll five dice.

Use it:  python roll.py /tmp/dice.sock
"""

import sys

from nodma.driver import VfioUserBus, VirtioPci

with VirtioPci(VfioUserBus.connect(sys.argv[1])) as device:
    device.negotiate(wanted=0)
    rolls = device.set_up_queue(0, size=64)
    buffer = device.reserve(5)  # five bytes of the window, and nothing of our own memory
    device.start()

    rolls.add(readable=[], writable=[(buffer, 5)], token="five dice")
    if rolls.publish():
        device.bus.post_bar(*device.notifier(0))
    while not rolls.pending():
        device.check()  # raises if the device asks to be reset
    for token, written in rolls.reap(1):
        print(f"{token}: {list(device.window.view(buffer, written))}")
