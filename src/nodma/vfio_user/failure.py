"""An exception as the errno that answers the message whose handling raised it."""

from __future__ import annotations

import contextlib
import errno
import logging

from nodma.errors import UsageError

log = logging.getLogger(__name__)


def errno_of(error: Exception, msg_id: int, command: int) -> int:
    """Return the errno: EINVAL for what is not there, EIO if the device failed, which is then logged."""
    if isinstance(error, (OSError, UsageError)):
        log.debug("message %d, command %d, refused: %s", msg_id, command, error)
        return (error.errno or errno.EIO) if isinstance(error, OSError) else errno.EINVAL
    with contextlib.suppress(Exception):  # out of memory, the log may fail as well
        log.error("the device failed at command %d", command, exc_info=error)
    return errno.EIO
