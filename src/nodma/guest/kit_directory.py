"""Where the kit is, and how two runs at once keep out of each other's way."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nodma.errors import UsageError

VARIABLE: Final = "NODMA_KIT"
"""The environment variable that says where, if no option does."""


def kit_directory(given: Path | None = None) -> Path:
    """Return where the kit is: ``given``, else $NODMA_KIT, else ``nodma`` in the user's cache directory."""
    if given is not None:
        return given.absolute()
    if named := os.environ.get(VARIABLE):
        return Path(named).absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "nodma"


@contextmanager
def locked(directory: Path, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock ``name`` of a kit; call ``waiting`` first if somebody else has it.

    Raises UsageError if the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / f"{name}.lock").open("w")
    except OSError as error:
        raise UsageError(
            f"{directory} cannot be written: {error.strerror}; name another directory with --kit or ${VARIABLE}"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
