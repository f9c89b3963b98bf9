"""Declare a wire structure once; read, write, dump and print it from that declaration.

A structure is a class of fields in the order of the wire, little-endian, without padding::

    class Capability(Layout):
        id = u8()
        next = u8()

On the class a field tells where it lies (``Capability.next.offset``); on an instance, which is a view
of some buffer, it is the number that stands there. ``rw`` marks what the driver may write: all of a field,
or the bits of a mask. ``codec`` packs and unpacks the whole at once, for the paths where one attribute at
a time is too slow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

V = TypeVar("V", int, bytes)
Buffer = bytes | bytearray | memoryview
"""What a structure can be laid over."""


class Field(Generic[V]):
    """One field: ``offset`` and ``size`` in bytes; ``writable`` has the bits that the driver may write."""

    __slots__ = ("default", "format", "name", "offset", "size", "writable")

    def __init__(self, format: str, default: V, rw: int) -> None:
        self.format = format
        self.size = struct.calcsize("<" + format)
        self.default: V = default
        self.writable = self.mask if rw is True else int(rw)
        self.offset = -1
        self.name = ""

    @property
    def end(self) -> int:
        """The offset of the first byte after the field."""
        return self.offset + self.size

    @property
    def mask(self) -> int:
        """All ones, as wide as the field."""
        return (1 << 8 * self.size) - 1

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Layout, owner: type) -> V: ...
    def __get__(self, instance: Layout | None, owner: type) -> Self | V:
        if instance is None:
            return self
        value: V = struct.unpack_from("<" + self.format, instance.buffer, instance.base + self.offset)[0]
        return value

    def __set__(self, instance: Layout, value: V) -> None:
        struct.pack_into("<" + self.format, instance.buffer, instance.base + self.offset, value)


def u8(default: int = 0, *, rw: int = False) -> Field[int]:
    """Declare one byte."""
    return Field("B", default, rw)


def le16(default: int = 0, *, rw: int = False) -> Field[int]:
    """Declare 16 bits, little-endian."""
    return Field("H", default, rw)


def le32(default: int = 0, *, rw: int = False) -> Field[int]:
    """Declare 32 bits, little-endian."""
    return Field("I", default, rw)


def le64(default: int = 0, *, rw: int = False) -> Field[int]:
    """Declare 64 bits, little-endian."""
    return Field("Q", default, rw)


def blob(size: int, *, rw: bool = False) -> Field[bytes]:
    """Declare ``size`` bytes that are no number."""
    return Field(f"{size}s", b"", rw)


class Layout:
    """A view of a structure in ``buffer``, which begins ``base`` bytes into it.

    Raises ValueError if the buffer is too short to hold the structure.
    """

    size: ClassVar[int] = 0
    fields: ClassVar[tuple[Field[Any], ...]] = ()
    codec: ClassVar[struct.Struct] = struct.Struct("<")

    def __init__(self, buffer: Buffer, base: int = 0) -> None:
        view = memoryview(buffer).cast("B")
        if base < 0 or base + self.size > len(view):
            raise ValueError(f"{type(self).__name__} needs {self.size} bytes at {base}, the buffer has {len(view)}")
        self.buffer = view
        self.base = base

    def __init_subclass__(cls) -> None:
        fields = list(cls.fields)
        at = cls.size
        for field in vars(cls).values():
            if isinstance(field, Field):
                field.offset = at
                at = field.end
                fields.append(field)
        cls.fields = tuple(fields)
        cls.size = at
        cls.codec = struct.Struct("<" + "".join(field.format for field in fields))

    @classmethod
    def new(cls, **values: int | bytes) -> Self:
        """Make one in fresh memory, from the fields' defaults and ``values``."""
        made = cls(bytearray(cls.size))
        for field in cls.fields:
            setattr(made, field.name, values.pop(field.name, field.default))
        if values:
            raise TypeError(f"{cls.__name__} has no field {', '.join(values)}")
        return made

    def items(self) -> Iterator[tuple[str, int | bytes]]:
        """Return each field's name and value, in the order of the wire."""
        for field in self.fields:
            yield field.name, getattr(self, field.name)

    def __bytes__(self) -> bytes:
        return bytes(self.buffer[self.base : self.base + self.size])

    def __repr__(self) -> str:
        inside = ", ".join(
            f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value!r}" for name, value in self.items()
        )
        return f"{type(self).__name__}({inside})"
