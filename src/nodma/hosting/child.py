"""The process of a function of a slot, as its supervisor sees it: started, listened to, signalled, ended.

It may be anybody's program, and do anything: print nonsense or nothing, leave processes behind that hold its
stdout, stop. It is never waited for without a limit, and nothing that it says is taken for more than it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final

from nodma.errors import Unavailable
from nodma.hosting.devices import option_words
from nodma.hosting.output import FORMAT
from nodma.hosting.slot_config import FunctionConfig, Role, SlotConfig

LINE_BYTES: Final = 64 << 10
"""Bytes of the longest line that is looked at; of a longer one nothing is."""
_PIECE: Final = 64 << 10
_LAST_PIECES: Final = 16
"""How much is read, at most, of what a process said before it ended."""
_TEXT_CHARACTERS: Final = 200

Report = dict[str, Any]


class Lines:
    """Cuts what a process says into lines. It holds :data:`LINE_BYTES` at most."""

    def __init__(self) -> None:
        self._begun = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole with ``data``; those that are too long are left out."""
        *whole, rest = data.split(b"\n")
        found = []
        for line in whole:
            if not self._skipping and len(self._begun) + len(line) <= LINE_BYTES:
                found.append(self._begun + line)
            self._begun, self._skipping = b"", False
        if self._skipping or len(self._begun) + len(rest) > LINE_BYTES:
            self._begun, self._skipping = b"", True
        else:
            self._begun += rest
        return found


class Child:
    """The process of a function, the leader of a process group. Raises Unavailable if it cannot be started.

    ``ready`` is what it said the device is, once it is ready; ``end`` is its report. ``complaint`` says what was wrong
    with its ready line.
    """

    def __init__(self, slot: SlotConfig, config: FunctionConfig, words: Sequence[str], listener: int | None) -> None:
        self.config = config
        self.ready: str | None = None
        self.end: Report | None = None
        self.complaint = ""
        self.status: int | None = None
        """Its exit code, or a negative signal number, once it has ended."""
        self._lines = Lines()
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setblocking(False)
        with theirs:
            handed = [theirs.fileno(), *([] if listener is None else [listener])]
            command = [*_command(slot, config, theirs.fileno(), listener), *words]
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=handed, process_group=0
                )
            except OSError as error:
                self.channel.close()
                raise Unavailable(f"{config.name}: cannot run {command[0]}: {error.strerror}") from error
        assert self._process.stdout
        self.stdout = self._process.stdout.fileno()
        os.set_blocking(self.stdout, False)
        self.pid_fd = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def is_owner(self) -> bool:
        """Whether the shared window is this function's."""
        return self.config.role is Role.OWNER

    def listen(self) -> bool:
        """Take what it said; return False if there is nothing more."""
        try:
            data = os.read(self.stdout, _PIECE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for line in self._lines.feed(data):
            self._take(line)
        return bool(data)

    def _take(self, line: bytes) -> None:
        """Understand a line if it is an object of the expected kind. Other lines are the program's own affair."""
        try:
            record = json.loads(line, parse_constant=_no_constant)
            event, number = record.get("event"), record.get("format", FORMAT)
        except (ValueError, AttributeError, RecursionError, MemoryError):
            return
        if event == "ready" and self.ready is None:
            text = record.get("device")
            if number != FORMAT:
                self.complaint = f"its ready line has format {str(number)[:20]}, expected {FORMAT}"
            elif not isinstance(text, str):
                self.complaint = 'its ready line has no "device", a string'
            else:
                self.ready = "".join(c if c.isprintable() else "?" for c in text[:_TEXT_CHARACTERS])
        elif event == "end" and number == FORMAT:
            self.end = record

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended. For any thread."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pid_fd, number)

    def ask_to_end(self) -> None:
        """Have it end in order, even if it was stopped."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it, and what it started, unless it has ended. For any thread."""
        if self.status is None:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
            self.signal(signal.SIGKILL)

    def reap(self) -> None:
        """Take its status, and what it said last. It has ended; what it left of its process group ends, too."""
        with contextlib.suppress(OSError):  # its number is not another's, as long as its status was not taken
            os.killpg(self.pid, signal.SIGKILL)
        self.status = self._process.wait()
        for _ in range(_LAST_PIECES):
            try:
                data = os.read(self.stdout, _PIECE)
            except OSError:
                break
            for line in self._lines.feed(data):
                self._take(line)
            if not data:
                break

    def close(self) -> None:
        """Close what leads to it. It has ended."""
        self.channel.close()
        if self._process.stdout:
            self._process.stdout.close()
        if self.pid_fd >= 0:
            os.close(self.pid_fd)
            self.pid_fd = -1


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _command(slot: SlotConfig, config: FunctionConfig, channel: int, listener: int | None) -> list[str]:
    """Return the command line of a function's process, as docs/shared-pools.md describes it."""
    words = list(config.program or (sys.executable, "-m", "nodma", "serve", config.device))
    words += ["--json", f"--pool={config.pool}", f"--slot-fd={channel}"]
    words += [f"--socket-path={config.socket}"] if listener is None else [f"--fd={listener}"]
    words += [f"--profile={slot.profile}", f"--policy={slot.policy}", *["--poll"] * slot.poll]
    if config.role is not Role.PRIVATE:
        assert slot.owner
        owner = "self" if config.role is Role.OWNER else str(slot.owner.number)
        words += [f"--pool-owner={owner}", f"--pool-users={len(slot.users)}"]
    return words + option_words(config.options)
