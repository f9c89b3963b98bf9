"""What a slot is to be: read from a TOML file or from the command line, and checked as a whole."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from nodma.errors import Unavailable, UsageError
from nodma.spec.pci import DEVICES, FUNCTIONS
from nodma.spec.profiles import MAX_POOL, MIN_POOL, PROFILES, SWIOTLB, Policy
from nodma.units import parse_size, show_size

DEFAULT_POOL: Final = 16 << 20
DEFAULT_SLOT: Final = 5
_SLOT_KEYS: Final = ("pool", "share", "profile", "policy", "processes", "poll", "slot", "function")
_OWN_KEYS: Final = ("device", "program", "socket", "pool", "role")
_BLK_KEYS: Final = ("image", "read-only", "queues", "serial", "cache")


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
    """All in one process, a thread each."""


@dataclass(frozen=True, slots=True)
class FunctionConfig:
    """A function: its number, its socket, whose window it has, and what device is in it.

    ``program`` is the command of a device of one's own; None: a device that comes with nodma, ``device``. ``pool`` is
    the bytes of the window; ``options`` are the device's, as on its command line, without the dashes.
    """

    number: int
    socket: Path
    role: Role
    pool: int
    device: str = "blk"
    program: tuple[str, ...] | None = None
    options: Mapping[str, str | int | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SlotConfig:
    """A slot: ``functions`` in the order of their numbers; ``slot`` is QEMU's device number for it."""

    functions: tuple[FunctionConfig, ...]
    profile: str = SWIOTLB.name
    policy: str = Policy.REQUIRED.value
    processes: Processes = Processes.EACH
    poll: bool = False
    """Whether queues look for requests all the time while some come."""
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
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def parse_function(text: str) -> dict[str, Any]:
    """Read a function from the command line, as in ``blk,image=a.img,socket=a.sock,read-only``. Raises UsageError."""
    device, *words = text.split(",")
    found: dict[str, Any] = {"device": device}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or key in found:
            raise UsageError(f"{text!r}: {key or word!r} is given twice, or is no KEY=VALUE")
        found[key] = value if equals else True
    return found


def make_config(raw: Mapping[str, Any]) -> SlotConfig:
    """Check what was read, as a whole. Raises UsageError for what cannot be, saying what can."""
    _only(raw, _SLOT_KEYS, "a slot")
    functions = raw.get("function", [])
    if not isinstance(functions, list) or not 1 <= len(functions) <= FUNCTIONS:
        raise UsageError(f"a slot has 1 to {FUNCTIONS} functions: give each a [[function]] of its own")
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
        raise UsageError(f"{name} is no table: write [[function]] above its keys")
    program = _program(table, name)
    if program is None:
        _only(table, (*_OWN_KEYS, *_BLK_KEYS), name)
        device = _one_of(table, "device", ["blk"], "blk")
        if "image" not in table:
            raise UsageError(f"{name} has no image: a blk device needs one")
    else:
        device = program[0]
    usual = Role.PRIVATE if not share else Role.SHARER if number else Role.OWNER
    role = Role(_one_of(table, "role", list(Role), usual, name))
    if role is Role.SHARER and "pool" in table:
        raise UsageError(f"{name} has a pool of its own and uses another's: give the size to the owner")
    return FunctionConfig(
        number,
        Path(_value(table, "socket", str, None, name)),
        role,
        _size(table, pool, name),
        device,
        program,
        {key: value for key, value in table.items() if key not in _OWN_KEYS},
    )


def _program(table: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    program = table.get("program")
    if program is None:
        return None
    if not isinstance(program, list) or not program or not all(isinstance(word, str) for word in program):
        raise UsageError(f'{name}: program is a list of words, as in ["python", "dice.py"]')
    if "device" in table:
        raise UsageError(f"{name} has both a device and a program: give one of them")
    return tuple(program)


def _check(slot: SlotConfig) -> None:
    """Check what only the functions together show."""
    owners = [str(function.number) for function in slot.functions if function.role is Role.OWNER]
    sharers = [str(function.number) for function in slot.functions if function.role is Role.SHARER]
    if len(owners) > 1:
        raise UsageError(f"functions {' and '.join(owners)} both claim to own the shared pool: one does")
    if sharers and not owners:
        raise UsageError(f"function {sharers[0]} uses a shared pool, and no function owns it: make one the owner")
    if owners and not PROFILES[slot.profile].shareable:
        raise UsageError(
            f"the profile {slot.profile} cannot share a pool: its region is one per device"
            f" ({PROFILES[slot.profile].clauses.region}); use {SWIOTLB.name}, or a pool for each function"
        )
    sockets = [function.socket for function in slot.functions]
    for number, socket in enumerate(sockets):
        if socket in sockets[:number]:
            raise UsageError(f"functions {sockets.index(socket)} and {number} both listen on {socket}")
    if slot.processes is Processes.ONE and any(function.program for function in slot.functions):
        raise UsageError("a program of one's own runs in a process of its own: leave processes out")
    if slot.slot not in range(DEVICES):
        raise UsageError(f"slot {slot.slot}: a bus has slots 0 to {DEVICES - 1}")


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
        raise UsageError(f"{name} has no {key}")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{name}: {key} is {value!r}, which is no {kind.__name__}")
    return value


def _one_of(table: Mapping[str, Any], key: str, choices: Sequence[str], usual: str, name: str = "a slot") -> str:
    value = table.get(key, usual)
    if value not in choices:
        raise UsageError(f"{name}: {key} is {value!r}; it can be {', '.join(choices)}")
    return str(value)


def _size(table: Mapping[str, Any], usual: int, name: str) -> int:
    value = table.get("pool", usual)
    size = parse_size(value) if isinstance(value, str) else value
    if type(size) is not int or size & (size - 1) or not MIN_POOL <= size <= MAX_POOL:
        raise UsageError(
            f"{name}: a pool of {value!r} must be a power of two from {show_size(MIN_POOL)} to {show_size(MAX_POOL)}"
        )
    return size
