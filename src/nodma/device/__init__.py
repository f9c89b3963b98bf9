"""Device models: the base that a user subclasses, and the devices that come with nodma.

A device sees the requests of its queues and nothing else: no transport, no bus, no memory but the views
that a request holds.
"""

from nodma.device.base import Device, Queue
from nodma.device.blk import BlockDevice
from nodma.ring import Request

__all__ = ["BlockDevice", "Device", "Queue", "Request"]
