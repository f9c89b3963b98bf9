"""Run a program, and say what it said when it failed."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from nodma.errors import GuestError
from nodma.programs import search_path

_LAST_LINES: Final = 15


def last_lines(text: str, count: int = _LAST_LINES) -> str:
    """Return the last lines of a log, indented, to show in an error."""
    return "\n".join(f"    {line.rstrip()}" for line in text.strip().splitlines()[-count:])


def environment() -> dict[str, str]:
    """Return the environment of programs that we start: this one, with /usr/sbin and its like on PATH."""
    return {**os.environ, "PATH": search_path()}


def run(
    command: Sequence[str | Path],
    what: str,
    *,
    log: Path | None = None,
    seconds: float = 600,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command; return what it printed, errors included. ``what`` names it to the user.

    It finds programs where root would, whoever runs it. With ``log``, all that it printed is kept there. Raises
    GuestError with its last lines if it fails.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            env=env or environment(),
            check=False,
        )
    except FileNotFoundError as error:
        raise GuestError(f"{what} needs the program {command[0]}, which is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise GuestError(f"{what} took longer than {seconds:.0f} s: {command[0]}") from error
    said = done.stdout.decode(errors="replace")
    if log:
        log.write_text(said)
    if done.returncode:
        where = f"; all of it is in {log}" if log else ""
        raise GuestError(f"{what} failed with {done.returncode}{where}:\n{last_lines(said)}")
    return said


def run_long(
    command: Sequence[str | Path], what: str, *, log: Path, seconds: float, on_line: Callable[[str], None]
) -> None:
    """Run a command that takes long; call ``on_line`` with each line that it prints, as it prints it.

    All that it prints is kept in ``log``. Raises GuestError with its last lines if it fails or takes too long.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env=environment(),
        )
    except FileNotFoundError as error:
        raise GuestError(f"{what} needs the program {command[0]}, which is not installed") from error
    expired = threading.Event()

    def end() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    def expire() -> None:
        expired.set()
        end()

    timer = threading.Timer(seconds, expire)
    timer.start()
    try:
        with process, log.open("w", buffering=1) as file:
            try:
                assert process.stdout
                for line in process.stdout:
                    file.write(line)
                    on_line(line)
            except BaseException:
                end()
                raise
    finally:
        timer.cancel()
    if expired.is_set():
        raise GuestError(f"{what} took longer than {seconds:.0f} s; its output is in {log}")
    if process.returncode:
        text = log.read_text()
        raise GuestError(f"{what} failed with status {process.returncode}; its output is in {log}:\n{last_lines(text)}")
