"""Run a program inside the kit's Debian, with files of ours in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from nodma.errors import GuestError
from nodma.guest.command import run, run_long

# In a mount namespace of its own, so that nothing stays mounted. $1 is the root; then pairs of a file or directory and
# its place in there, up to "--"; then the command.
_SCRIPT: Final = """
set -e
root=$1
shift
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
while [ "$1" != -- ]; do
    mkdir -p "$root/$2"
    mount --bind "$1" "$root/$2"
    shift 2
done
shift
exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/usr/sbin "$@"
"""


def problem() -> str | None:
    """Return why nothing can be run inside another Debian here; None if it was tried and works."""
    try:
        run_inside(Path("/"), ["true"], "running a program in its own namespaces", binds={})
    except GuestError as error:
        return str(error)
    return None


def run_inside(
    root: Path, command: Sequence[str], what: str, *, binds: Mapping[Path, str], log: Path | None = None
) -> str:
    """Run ``command`` with ``root`` as its root; ``binds`` are directories, and their places in there.

    Needs root, or user namespaces that an ordinary user may make. Returns what it printed, errors included. Raises
    GuestError, with the last lines, if it fails; ``what`` names it.
    """
    return run(_inside(root, command, binds), what, log=log)


def run_long_inside(
    root: Path,
    command: Sequence[str],
    what: str,
    *,
    binds: Mapping[Path, str],
    log: Path,
    seconds: float,
    on_line: Callable[[str], None],
) -> None:
    """Run ``command`` as :func:`run_inside` does; call ``on_line`` with each line that it prints."""
    run_long(_inside(root, command, binds), what, log=log, seconds=seconds, on_line=on_line)


def _inside(root: Path, command: Sequence[str], binds: Mapping[Path, str]) -> list[str | Path]:
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    pairs = [word for path, place in binds.items() for word in (str(path), place)]
    return ["unshare", *namespaces, "sh", "-c", _SCRIPT, "sh", root, *pairs, "--", *command]
