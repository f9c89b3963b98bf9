"""What the proof concludes from what it finds; tests/guests/test_prove.py runs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nodma.confinement import Examination
from nodma.errors import GuestError
from nodma.guest.prove import _checks, _guest_memory_and_window
from nodma.procfs import FileIdentity, MappedRange

MEMORY, WINDOW, OTHER = FileIdentity(1, 10), FileIdentity(1, 11), FileIdentity(1, 12)
WINDOW_MAP = MappedRange(0, 16 << 20, "rw-s", WINDOW, "/memfd:nodma-window (deleted)")
CANARY, MARKER = b"canary", b"marker"
REPORT = {"dma_descriptors_closed": 9, "dma_maps": 16, "requests": 700, "addresses_outside_window": 0}


def memory_map(begin: int, end: int) -> MappedRange:
    return MappedRange(begin << 20, end << 20, "rw-s", MEMORY, "/memfd:memory-backend-memfd (deleted)")


def test_memory_and_window_are_found_however_many_parts_their_mappings_have() -> None:
    halves = [replace(WINDOW_MAP, end=8 << 20), replace(WINDOW_MAP, start=8 << 20)]
    assert _guest_memory_and_window([memory_map(0, 300), memory_map(300, 512), *halves]) == ({MEMORY}, WINDOW)


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ([memory_map(0, 511), WINDOW_MAP], "does not map 512 MiB of shared guest memory"),
        ([replace(memory_map(0, 512), permissions="rw-p"), WINDOW_MAP], "does not map 512 MiB"),
        ([memory_map(0, 512)], "maps 0 windows"),
        ([memory_map(0, 512), WINDOW_MAP, replace(WINDOW_MAP, file=OTHER)], "maps 2 windows"),
    ],
)
def test_without_memory_or_window_there_is_no_proof(maps: list[MappedRange], words: str) -> None:
    with pytest.raises(GuestError, match=words):
        _guest_memory_and_window(maps)


def failed(examination: Examination, roms: list[str] | None = None, **report: int) -> list[str]:
    checks = _checks(examination, WINDOW, REPORT | report, roms or [], canary=CANARY, marker=MARKER)
    return [check.says for check in checks if not check.holds]


def found(**more: Any) -> Examination:
    return replace(Examination(1, [WINDOW_MAP], [], 0, [], frozenset({MARKER})), **more)


def test_nothing_found_is_a_proof() -> None:
    assert failed(found()) == []


@pytest.mark.parametrize("kind", ["memory_mapped", "memory_open", "elsewhere", "foreign", "opaque"])
def test_each_kind_of_finding_fails_a_check_that_says_what_it_is(kind: str) -> None:
    (says,) = failed(found(**{kind: ["such a thing"]}))
    assert says.endswith("; such a thing")


def test_a_search_that_finds_the_canary_or_not_even_the_marker_fails() -> None:
    assert len(failed(found(found=frozenset({MARKER, CANARY})))) == 1
    assert len(failed(found(found=frozenset()))) == 1


def test_other_checks_that_fail() -> None:
    assert failed(found(maps=[])) == [
        "all that it maps and shares is its window, which QEMU maps too; it does not map the window that QEMU maps"
    ]
    assert failed(found(), ["the guest has one"]) == [
        "it offers no option ROM, and the guest has none of it; the guest has one"
    ]
    assert len(failed(found(), dma_descriptors_closed=0)) == 1
    assert len(failed(found(), addresses_outside_window=1)) == 1
    assert len(failed(found(), requests=0)) == 1
