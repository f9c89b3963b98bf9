"""Interrupts: masked, pending, delivered once; INTx as VFIO has it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from nodma.pci_function import Interrupts


class Wired:
    """Interrupts whose eventfds the test can read too."""

    def __init__(self, vectors: int = 3) -> None:
        self.interrupts = Interrupts(vectors)
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(vectors + 1)]
        self.interrupts.assign_vectors(0, [os.dup(fd) for fd in self.fds[:vectors]])
        self.interrupts.assign_intx(os.dup(self.fds[vectors]))

    def take(self, index: int) -> int:
        """How often it was signalled since the last look; -1 is INTx."""
        try:
            return os.eventfd_read(self.fds[index])
        except BlockingIOError:
            return 0


@pytest.fixture
def wired(count_descriptors: Callable[[], int]) -> Iterator[Wired]:
    before = count_descriptors()
    wired = Wired()
    yield wired
    wired.interrupts.close()
    for fd in wired.fds:
        os.close(fd)
    assert count_descriptors() == before


def test_each_vector_has_its_own_eventfd(wired: Wired) -> None:
    wired.interrupts.set_msix(on=True, function_mask=False)
    wired.interrupts.raise_vector(1)
    wired.interrupts.raise_vector(0xFFFF)  # NO_VECTOR
    assert [wired.take(n) for n in range(3)] == [0, 1, 0]


def test_a_masked_vector_is_pending_and_delivered_once_when_unmasked(wired: Wired) -> None:
    wired.interrupts.set_msix(on=True, function_mask=False)
    wired.interrupts.mask_vectors(1, 1, True)
    for _ in range(3):
        wired.interrupts.raise_vector(1)
    assert (wired.take(1), wired.interrupts.pending_bits()[0]) == (0, 0b010)
    wired.interrupts.mask_vectors(1, 1, False)
    assert (wired.take(1), wired.interrupts.pending_bits()[0]) == (1, 0)


def test_the_function_mask_holds_all_back(wired: Wired) -> None:
    wired.interrupts.set_msix(on=True, function_mask=True)
    wired.interrupts.raise_vector(0)
    wired.interrupts.raise_vector(2)
    assert ([wired.take(n) for n in range(3)], wired.interrupts.pending_bits()[0]) == ([0, 0, 0], 0b101)
    wired.interrupts.set_msix(on=True, function_mask=False)
    assert [wired.take(n) for n in range(3)] == [1, 0, 1]


def test_the_table_masks_vectors_that_a_client_writes_there(wired: Wired) -> None:
    wired.interrupts.set_msix(on=True, function_mask=False)
    wired.interrupts.write_table(12, b"\1\0\0\0")  # vector 0's control
    wired.interrupts.write_table(16, b"address!")  # no control is touched
    wired.interrupts.raise_vector(0)
    wired.interrupts.raise_vector(1)
    assert (wired.take(0), wired.take(1)) == (0, 1)
    wired.interrupts.write_table(0, bytes(16))
    assert wired.take(0) == 1


def test_after_reset_the_table_reads_masked(wired: Wired) -> None:
    wired.interrupts.write_table(0, b"\xff" * 12 + bytes(4))
    wired.interrupts.reset()
    assert [wired.interrupts.table[16 * n + 12] for n in range(3)] == [1, 1, 1]
    assert not wired.interrupts.msix_on


def test_intx_masks_itself_and_signals_again_while_the_line_is_up(wired: Wired) -> None:
    wired.interrupts.set_line(True)
    wired.interrupts.set_line(True)
    assert wired.take(-1) == 1
    wired.interrupts.mask_intx(False)  # the VMM unmasks: the line is still up
    assert wired.take(-1) == 1
    wired.interrupts.set_line(False)
    wired.interrupts.mask_intx(False)
    assert wired.take(-1) == 0


def test_intx_is_silent_when_disabled_or_when_msix_is_on(wired: Wired) -> None:
    wired.interrupts.set_intx_disable(True)
    wired.interrupts.set_line(True)
    assert wired.take(-1) == 0
    wired.interrupts.set_intx_disable(False)
    assert wired.take(-1) == 1
    wired.interrupts.set_line(False)
    wired.interrupts.mask_intx(False)
    wired.interrupts.set_msix(on=True, function_mask=False)
    wired.interrupts.set_line(True)
    assert wired.take(-1) == 0


def test_whoever_makes_a_full_eventfd_block_gets_no_interrupt_until_it_assigns_anew(
    wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []

    def interrupted(fd: int, value: int) -> None:
        writes.append(fd)
        raise InterruptedError

    wired.interrupts.set_msix(on=True, function_mask=False)
    with monkeypatch.context() as patched:
        patched.setattr(os, "eventfd_write", interrupted)
        for vector in range(3):
            wired.interrupts.raise_vector(vector)
        wired.interrupts.trigger_intx()
    assert len(writes) == 1  # once, and not once a vector
    wired.interrupts.mask_vectors(0, 3, True)
    wired.interrupts.raise_vector(0)
    wired.interrupts.mask_vectors(0, 3, False)
    wired.interrupts.assign_vectors(1, [os.dup(wired.fds[1])])
    for vector in range(3):
        wired.interrupts.raise_vector(vector)
    wired.interrupts.trigger_intx()
    assert [wired.take(n) for n in (0, 1, 2, -1)] == [0, 1, 0, 0]


def test_an_eventfd_that_is_none_does_no_harm(wired: Wired) -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    wired.interrupts.set_msix(on=True, function_mask=False)
    wired.interrupts.assign_vectors(0, [read_end])
    delivered = wired.interrupts.delivered
    wired.interrupts.raise_vector(0)
    assert wired.interrupts.delivered == delivered


def test_vectors_beyond_the_last_are_nobodys(wired: Wired) -> None:
    wired.interrupts.set_msix(on=True, function_mask=True)
    for vector in (3, 4, 0xFFFE, 0xFFFF):
        wired.interrupts.raise_vector(vector)
        assert wired.interrupts.eventfd_if_unmasked(vector) == -1
    assert wired.interrupts.pending_bits() == bytes(8)
    wired.interrupts.raise_vector(2)
    assert wired.interrupts.pending_bits() == b"\4" + bytes(7)


@pytest.mark.parametrize(("vectors", "size"), [(1, 8), (64, 8), (65, 16), (128, 16), (129, 24), (512, 64)])
def test_the_pending_bits_are_whole_words(vectors: int, size: int) -> None:
    interrupts = Interrupts(vectors)
    interrupts.mask_vectors(0, vectors, True)
    interrupts.raise_vector(vectors - 1)
    assert interrupts.pending_bits() == (1 << vectors - 1).to_bytes(size, "little")


def test_signals_are_counted(wired: Wired) -> None:
    wired.interrupts.set_msix(on=True, function_mask=False)
    for vector in (0, 1, 1):
        wired.interrupts.raise_vector(vector)
    wired.interrupts.assign_vectors(2, [-1])
    wired.interrupts.raise_vector(2)
    assert wired.interrupts.delivered == 3


@pytest.mark.parametrize(
    ("offset", "data", "touched"),
    [
        (12, b"\1", [0]),
        (15, b"\1", [0]),
        (11, b"\1", []),
        (16, bytes(12), []),
        (8, bytes(4), []),
        (12, bytes(20), [0, 1]),
        (27, b"\0\0", [1]),
        (0, bytes(48), [0, 1, 2]),
    ],
)
def test_a_write_to_the_table_acts_on_the_controls_that_it_touches(
    wired: Wired, monkeypatch: pytest.MonkeyPatch, offset: int, data: bytes, touched: list[int]
) -> None:
    acted: list[int] = []
    monkeypatch.setattr(wired.interrupts, "mask_vectors", lambda vector, count, masked: acted.append(vector))
    wired.interrupts.write_table(offset, data)
    assert acted == touched
    assert bytes(wired.interrupts.table[offset : offset + len(data)]) == data


def test_eventfds_are_closed_by_whoever_can_bear_that_it_takes_forever(wired: Wired) -> None:
    closed: list[int] = []
    wired.interrupts.close_fds = closed.extend
    err = os.eventfd(0)
    wired.interrupts.assign_err(err)
    had = [*wired.interrupts._eventfds, wired.interrupts._intx_fd]
    wired.interrupts.assign_vectors(0, [os.eventfd(0)])
    replacement = wired.interrupts._eventfds[0]
    wired.interrupts.give_up()
    wired.interrupts.close()
    assert closed == [had[0], replacement, *had[1:], err]
    for fd in closed:
        os.close(fd)
