"""The wire to a VMM: vfio-user 0.0 over a UNIX socket, both ends.

:class:`Server` serves one device to one client at a time; :class:`Client` is the other end, for drivers
and tools. The server never keeps what would let it reach the client's memory: see
:mod:`nodma.vfio_user.guard`.
"""

from nodma.vfio_user.client import Client
from nodma.vfio_user.endpoint import Endpoint
from nodma.vfio_user.guard import DmaGuard
from nodma.vfio_user.server import Server

__all__ = ["Client", "DmaGuard", "Endpoint", "Server"]
