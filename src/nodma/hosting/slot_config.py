"""What a slot is to be: read from a TOML file or from the command line, and checked as a whole."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from nodma.errors import NodmaError, Unavailable, UsageError
from nodma.hosting.devices import BLK, KINDS, Scalar
from nodma.hosting.options import check_path, check_policy, check_pool
from nodma.spec.pci import DEVICES, FUNCTIONS
from nodma.spec.profiles import PROFILES, SWIOTLB, Policy
from nodma.units import parse_size

DEFAULT_POOL: Final = 16 << 20
DEFAULT_SLOT: Final = 5
_SLOT_KEYS: Final = ("pool", "share", "profile", "policy", "processes", "poll", "slot", "function")
_OWN_KEYS: Final = ("device", "program", "socket", "pool", "role")
_PASSED_KEYS: Final = frozenset(
    {"json", "socket-path", "fd", "socket-mode", "socket-group", "slot-fd", "pool-owner", "pool-users", "profile"}
    | {"policy", "poll", "verbose", "auditable"}
)
"""Options that a program gets from the supervisor: a slot file says them in other places, or not at all."""
_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)
_NAMES: Final = {str: "a string", int: "an integer", bool: "true or false"}


class Role(StrEnum):
    """Whose window a function works in."""

    PRIVATE = "private"
    """In its own, which nobody else has."""
    OWNER = "owner"
    """In its own, which others have, too."""
    SHARER = "sharer"
    """In the owner's."""


class Processes(StrEnum):
    """How the functions run."""

    EACH = "each"
    """Each in a process of its own."""
    ONE = "one"
    """All in one process, by one loop."""


@dataclass(frozen=True, slots=True)
class FunctionConfig:
    """A function: its number, its socket, whose window it has, and what device is in it.

    ``program`` is the command of a device of your own; None: a device that comes with nodma, ``device``. ``pool`` is
    the bytes of the window; ``options`` are the device's, as on its command line, without the dashes.
    """

    number: int
    socket: Path
    role: Role
    pool: int
    device: str = "blk"
    program: tuple[str, ...] | None = None
    options: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"function {self.number} ({self.socket})"


@dataclass(frozen=True, slots=True)
class SlotConfig:
    """A slot: ``functions`` in the order of their numbers; ``slot`` is QEMU's device number for it."""

    functions: tuple[FunctionConfig, ...]
    profile: str = SWIOTLB.name
    policy: str = Policy.REQUIRED.value
    processes: Processes = Processes.EACH
    poll: bool = False
    """Whether queues keep looking for requests while they come."""
    slot: int = DEFAULT_SLOT

    @property
    def owner(self) -> FunctionConfig | None:
        """The function whose pool others have, too."""
        return next((function for function in self.functions if function.role is Role.OWNER), None)

    @property
    def users(self) -> tuple[FunctionConfig, ...]:
        """The functions that work in the shared pool, its owner among them."""
        return tuple(function for function in self.functions if function.role is not Role.PRIVATE)


def load_config(path: Path) -> SlotConfig:
    """Read a TOML file. Raises UsageError, with the file's name, for whatever is wrong with it."""
    try:
        with path.open("rb") as file:
            return make_config(tomllib.load(file))
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def parse_function(text: str) -> dict[str, Any]:
    """Read a function from the command line, as in ``blk,image=a.img,socket=a.sock,read-only``.

    A comma that belongs to a value is written twice, as for QEMU. Raises UsageError.
    """
    device, *words = (word.replace("\0", ",") for word in text.replace(",,", "\0").split(","))
    found: dict[str, Any] = {"device": device}
    for word in words:
        key, equals, value = word.partition("=")
        if not key:
            raise UsageError(f"{text!r}: expected KEY or KEY=VALUE between commas, got {word!r}")
        if key in found:
            raise UsageError(f"{text!r}: {key} is given twice")
        found[key] = value if equals else True
    return found


def make_config(raw: Mapping[str, Any]) -> SlotConfig:
    """Check what was read, as a whole. Raises UsageError for what does not work, saying what does."""
    _only(raw, _SLOT_KEYS, "a slot")
    functions = raw.get("function", [])
    if not isinstance(functions, list) or not 1 <= len(functions) <= FUNCTIONS:
        raise UsageError(f"a slot has 1 to {FUNCTIONS} functions: give each its own [[function]]")
    share = _value(raw, "share", bool, False, "a slot")
    pool = _size(raw, DEFAULT_POOL, "a slot")
    slot = SlotConfig(
        tuple(_function(number, table, share, pool) for number, table in enumerate(functions)),
        profile=_one_of(raw, "profile", list(PROFILES), SWIOTLB.name),
        policy=_one_of(raw, "policy", list(Policy), Policy.REQUIRED),
        processes=Processes(_one_of(raw, "processes", list(Processes), Processes.EACH)),
        poll=_value(raw, "poll", bool, False, "a slot"),
        slot=_value(raw, "slot", int, DEFAULT_SLOT, "a slot"),
    )
    _check(slot)
    return _with_owners_pool(slot)


def _function(number: int, table: Any, share: bool, pool: int) -> FunctionConfig:
    name = f"function {number}"
    if not isinstance(table, Mapping):
        raise UsageError(f"{name} is not a table: write [[function]] above its keys")
    program = _program(table, name)
    device = program[0] if program else _one_of(table, "device", list(KINDS), BLK.name, name)
    options = {key: _scalar(table, key, name) for key in table if key not in _OWN_KEYS}
    if program:
        _check_program_options(options, name)
    else:
        _check_device_options(device, options, name)
    usual = Role.PRIVATE if not share else Role.SHARER if number else Role.OWNER
    role = Role(_one_of(table, "role", list(Role), usual, name))
    if role is Role.SHARER and "pool" in table:
        raise UsageError(f"{name} uses the pool of another function: leave out its own, or make it private")
    socket = _named(f"{name}: socket", lambda: check_path(_value(table, "socket", str, None, name)))
    return FunctionConfig(number, socket, role, _size(table, pool, name), device, program, options)


def _program(table: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    program = table.get("program")
    if program is None:
        return None
    words = program if isinstance(program, list) else []
    if not words or not all(isinstance(word, str) and word and "\0" not in word for word in words):
        raise UsageError(f'{name}: program must be a list of words, as in ["python", "dice.py"]')
    if "device" in table:
        raise UsageError(f"{name} has both a device and a program: give one of them")
    return tuple(program)


def _check_device_options(device: str, options: Mapping[str, Scalar], name: str) -> None:
    kind = KINDS[device]
    _only(options, (*_OWN_KEYS, *kind.keys), name)
    _named(name, lambda: kind.read(options))


def _check_program_options(options: Mapping[str, Scalar], name: str) -> None:
    for key in options:
        if not _KEY.fullmatch(key) or key in _PASSED_KEYS:
            raise UsageError(f"{name} has no key {key!r}: a program's own options have letters, digits and dashes")


def _check(slot: SlotConfig) -> None:
    """Check what only the functions together show."""
    owners = [str(function.number) for function in slot.functions if function.role is Role.OWNER]
    sharers = [str(function.number) for function in slot.functions if function.role is Role.SHARER]
    if len(owners) > 1:
        raise UsageError(f"functions {' and '.join(owners)} both claim to own the shared pool: make one the owner")
    if sharers and not owners:
        raise UsageError(f"function {sharers[0]} uses a shared pool, but no function owns it: make one the owner")
    profile = PROFILES[slot.profile]
    check_policy(profile, Policy(slot.policy))
    if owners and not profile.shareable:
        raise UsageError(
            f"profile {slot.profile} cannot share a pool: its region is one per device"
            f" ({profile.clauses.region}); use {SWIOTLB.name}, or a pool for each function"
        )
    sockets = [function.socket.absolute() for function in slot.functions]
    for number, socket in enumerate(sockets):
        if socket in sockets[:number]:
            shown = slot.functions[number].socket
            raise UsageError(f"functions {sockets.index(socket)} and {number} both listen on {shown}")
    if slot.processes is Processes.ONE and any(function.program for function in slot.functions):
        raise UsageError('processes = "one" cannot be used with program: it runs in a process of its own')
    if slot.slot not in range(DEVICES):
        raise UsageError(f"invalid slot {slot.slot}: a bus has slots 0 to {DEVICES - 1}")


def _with_owners_pool(slot: SlotConfig) -> SlotConfig:
    """Give each sharer the owner's pool size."""
    owner = slot.owner
    if owner is None:
        return slot
    return replace(
        slot, functions=tuple(replace(f, pool=owner.pool) if f.role is Role.SHARER else f for f in slot.functions)
    )


def _only(table: Mapping[str, Any], known: Sequence[str], name: str) -> None:
    for key in table:
        if key not in known:
            raise UsageError(f"{name} has no key {key!r}; it has {', '.join(known)}")


def _value(table: Mapping[str, Any], key: str, kind: type, usual: Any, name: str) -> Any:
    value = table.get(key, usual)
    if value is None:
        raise UsageError(f"{name} has no {key}: it needs one")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{name}: {key} must be {_NAMES[kind]}, got {_show(value)}")
    return value


def _scalar(table: Mapping[str, Any], key: str, name: str) -> Scalar:
    value = table[key]
    if not isinstance(value, (str, int, float, bool)) or (isinstance(value, str) and "\0" in value):
        raise UsageError(f"{name}: {key} must be a string, a number, true or false, got {_show(value)}")
    return value


def _one_of(table: Mapping[str, Any], key: str, choices: Sequence[str], usual: str, name: str = "a slot") -> str:
    value = table.get(key, usual)
    if value not in choices:
        raise UsageError(f"{name}: {key} must be {' or '.join(choices)}, got {_show(value)}")
    return str(value)


def _size(table: Mapping[str, Any], usual: int, name: str) -> int:
    value = table.get("pool", usual)
    if isinstance(value, str):
        value = _named(name, lambda: parse_size(value))
    if type(value) is not int:
        raise UsageError(f'{name}: pool must be an integer, or a string such as "16M", got {_show(value)}')
    return int(_named(name, lambda: check_pool(value)))


def _named(name: str, work: Any) -> Any:
    """Do ``work``; an error of it names what it is about."""
    try:
        return work()
    except NodmaError as error:
        raise type(error)(f"{name}: {error}") from None


def _show(value: object) -> str:
    """Write a value about as TOML does."""
    return str(value).lower() if isinstance(value, bool) else repr(value)
