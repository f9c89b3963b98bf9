"""Make, check and read ext4 images with e2fsprogs, without mounting anything."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nodma.errors import Unavailable
from nodma.programs import require

BLOCK: Final = 4096
_PACKAGE: Final = "e2fsprogs"


def _run(arguments: list[str], *, good: Iterable[int] = (0,)) -> str:
    process: subprocess.Popen[str] | None = None
    # A signal that ended us while Popen starts it would leave a program that nobody knows, and that writes on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        out, errors = process.communicate()
    finally:
        if process:
            process.kill()
            process.wait()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if process.returncode not in good:
        last = " / ".join((out + errors).strip().splitlines()[-3:])
        raise Unavailable(f"{Path(arguments[0]).name} failed with exit code {process.returncode}: {last}")
    return out


def make_image(image: Path, tree: Path, size: int) -> None:
    """Make an ext4 image of ``size`` bytes with the files of ``tree`` in it."""
    with image.open("wb") as file:
        file.truncate(size)
    options = ["-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-E", "lazy_itable_init=0,lazy_journal_init=0"]
    _run([require("mke2fs", _PACKAGE), *options, "-d", str(tree), str(image)])


def check_image(image: Path) -> str:
    """Check the whole file system, changing nothing, and return e2fsck's summary. Raises UsageError if it is broken."""
    return _run([require("e2fsck", _PACKAGE), "-f", "-n", str(image)]).strip().splitlines()[-1]


def blocks_of(image: Path, paths: list[str], work: Path) -> dict[str, list[int]]:
    """Return the blocks of the image that the files at ``paths`` have, in the order of their contents."""
    commands = work / "blocks.debugfs"
    commands.write_text("".join(f'blocks "/{path}"\n' for path in paths))
    output = _run([require("debugfs", _PACKAGE), "-f", str(commands), str(image)])
    answers = re.split(r"^debugfs: blocks .*$", output, flags=re.MULTILINE)[1:]
    return {path: [int(number) for number in answer.split()] for path, answer in zip(paths, answers, strict=True)}


def extract(image: Path, into: Path) -> None:
    """Copy all files of the image below ``into``."""
    into.mkdir()
    _run([require("debugfs", _PACKAGE), "-R", f'rdump / "{into}"', str(image)])
