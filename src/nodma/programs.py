"""Find programs of this machine, also those that only root's PATH leads to."""

from __future__ import annotations

import os
import shutil
from typing import Final

from nodma.errors import Unavailable

_ADMINISTRATION: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """Return PATH, with the directories added that an ordinary user's lacks (Debian's /usr/sbin)."""
    given = os.environ.get("PATH", os.defpath)
    missing = [place for place in _ADMINISTRATION if place not in given.split(os.pathsep)]
    return os.pathsep.join([given, *missing])


def find(name: str) -> str | None:
    """Return where a program is; None if it is not installed."""
    return shutil.which(name, path=search_path())


def require(name: str, package: str) -> str:
    """Return where a program is. Raises Unavailable, naming the package that brings it, if it is not installed."""
    found = find(name)
    if found is None:
        raise Unavailable(f"{name} is missing: install {package} (Debian, Ubuntu: apt-get install {package})")
    return found
