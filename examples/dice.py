"""A virtio device in a screenful: it rolls dice. See docs/write-a-device.md.

Serve it:  python dice.py -s /tmp/dice.sock
"""

import secrets

from nodma import Device, Layout, Queue, Request, le32, main


class Dice(Device):
    """Roll dice for a virtio driver."""

    device_type = 0x2A  # no virtio device has this id today
    queues = (Queue("rolls", size=64),)

    class Config(Layout):  # what the driver reads as device configuration
        sides = le32(6)

    config: Config

    def rolls(self, request: Request) -> None:
        """Fill the buffer that the driver offers with rolls, a byte each."""
        sides = self.config.sides
        room = sum(len(part) for part in request.writable)
        request.write(bytes(secrets.randbelow(sides) + 1 for _ in range(room)))


if __name__ == "__main__":
    main(Dice)
