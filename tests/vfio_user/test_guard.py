"""The guard's account of memory that it never touches."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nodma.vfio_user import DmaGuard
from nodma.vfio_user import guard as module


def refusal(call: Callable[[], None]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def test_what_is_refused_and_how() -> None:
    guard = DmaGuard()
    guard.map(3, 0x1000, 0x1000)
    assert refusal(lambda: guard.map(3, 0x1000, 0x1000)) == errno.EEXIST
    assert refusal(lambda: guard.map(3, 0x1FFF, 1)) == errno.EEXIST
    assert refusal(lambda: guard.map(3, 0xFFF, 2)) == errno.EEXIST
    assert refusal(lambda: guard.map(3, 0, 0x10000)) == errno.EEXIST
    assert refusal(lambda: guard.map(3, 0x2000, 0)) == errno.EINVAL
    assert refusal(lambda: guard.map(3, 2**64 - 1, 2)) == errno.EINVAL
    assert refusal(lambda: guard.map(4, 0x2000, 1)) == errno.EINVAL
    assert refusal(lambda: guard.unmap(0, 0x1000, 0x800)) == errno.ENOENT
    assert refusal(lambda: guard.unmap(0, 0x1800, 0x800)) == errno.ENOENT
    assert refusal(lambda: guard.unmap(1, 0x1000, 0x1000)) == errno.ENOTSUP
    assert refusal(lambda: guard.unmap(4, 0x1000, 0x1000)) == errno.EINVAL
    assert refusal(lambda: guard.unmap(2, 0x1000, 0x1000)) == errno.EINVAL
    assert guard.regions == {0x1000: 0x1000}
    guard.unmap(2, 0, 0)
    assert guard.regions == {}


def test_there_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFAULT_MAX_DMA_MAPS", 3)
    guard = DmaGuard()
    for number in range(3):
        guard.map(3, number, 1)
    assert refusal(lambda: guard.map(3, 10, 1)) == errno.ENOSPC


class Account(RuleBasedStateMachine):
    """Regions in any order, against a model that knows every byte."""

    def __init__(self) -> None:
        super().__init__()
        self.guard = DmaGuard()
        self.model: dict[int, int] = {}

    @rule(address=st.integers(0, 60), size=st.integers(1, 12))
    def map(self, address: int, size: int) -> None:
        overlaps = any(address < start + length and start < address + size for start, length in self.model.items())
        assert refusal(lambda: self.guard.map(3, address, size)) == (errno.EEXIST if overlaps else None)
        if not overlaps:
            self.model[address] = size

    @rule(address=st.integers(0, 60), size=st.integers(1, 12))
    def unmap(self, address: int, size: int) -> None:
        there = self.model.get(address) == size
        assert refusal(lambda: self.guard.unmap(0, address, size)) == (None if there else errno.ENOENT)
        if there:
            del self.model[address]

    @invariant()
    def accounts_agree(self) -> None:
        assert self.guard.regions == self.model


TestAccount = Account.TestCase
