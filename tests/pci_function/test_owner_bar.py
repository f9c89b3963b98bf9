"""Where a shared pool's owner is: what DMA_MAP tells, and nothing that it does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodma.pci_function.owner_bar import OwnerBar

SIZE = 1 << 20
A, B, C = (n * SIZE for n in (16, 32, 48))


def told(*addresses: int) -> OwnerBar:
    bar = OwnerBar(SIZE)
    for address in addresses:
        bar.mapped(address, SIZE)
    return bar


def test_a_queue_settles_which_region_it_is() -> None:
    bar = told(A, B)
    assert bar.address is None
    assert bar.choose(B + 0x1000)
    assert bar.address == B
    assert not bar.choose(A)  # another queue, in another region


def test_regions_of_other_sizes_or_places_are_none_of_it() -> None:
    bar = OwnerBar(SIZE)
    bar.mapped(A, SIZE // 2)
    bar.mapped(A, SIZE * 2)
    bar.mapped(B + 4096, SIZE)
    bar.mapped(0, 1 << 64)
    assert bar.known == 0
    assert not any(bar.choose(address) for address in (0, A, B + 4096))


def test_it_is_followed_when_it_moves() -> None:
    bar = told(A)
    assert bar.choose(A)
    bar.unmapped(A, SIZE)
    assert (bar.address, bar.ambiguous) == (None, False)
    bar.mapped(C, SIZE)
    assert bar.address == C


def test_what_was_there_beside_it_is_not_taken_for_it() -> None:
    bar = told(A, B)
    assert bar.choose(A)
    bar.unmapped(A, SIZE)
    assert bar.address is None
    bar.mapped(A, SIZE)
    assert bar.address == A


def test_what_came_while_it_was_there_is_not_taken_for_it() -> None:
    bar = told(A)
    assert bar.choose(A)
    bar.mapped(B, SIZE)
    bar.unmapped(A, SIZE)
    assert bar.address is None


def test_of_two_that_come_after_it_neither_is_taken() -> None:
    bar = told(A)
    assert bar.choose(A)
    bar.unmapped(A, SIZE)
    bar.mapped(B, SIZE)
    assert bar.address == B
    bar.mapped(C, SIZE)
    assert (bar.address, bar.ambiguous) == (None, True)
    bar.mapped(A, SIZE)  # where the queues are
    assert (bar.address, bar.ambiguous) == (A, False)


def test_another_driver_settles_it_anew() -> None:
    bar = told(A, B)
    assert bar.choose(A)
    bar.forget_choice()
    assert bar.choose(B)
    bar.clear()
    assert bar.known == 0
    assert not bar.choose(B)


@given(st.lists(st.tuples(st.sampled_from(["map", "unmap", "choose", "forget"]), st.sampled_from([A, B, C]))))
def test_it_never_is_where_no_region_is(events: list[tuple[str, int]]) -> None:
    bar = OwnerBar(SIZE)
    there: set[int] = set()
    for what, address in events:
        if what == "map":
            bar.mapped(address, SIZE)
            there.add(address)
        elif what == "unmap":
            bar.unmapped(address, SIZE)
            there.discard(address)
        elif what == "choose":
            chosen = bar.choose(address)
            assert chosen is (bar.address == address)
        else:
            bar.forget_choice()
        assert bar.address is None or bar.address in there
        assert bar.known <= len(there)


def test_of_several_that_came_since_it_left_none_is_taken_until_one_is_left() -> None:
    bar = told(A)
    assert bar.choose(A)
    bar.unmapped(A, SIZE)
    bar.mapped(B, SIZE)
    assert bar.address == B
    bar.mapped(C, SIZE)
    assert (bar.address, bar.known, bar.ambiguous) == (None, 2, True)
    bar.mapped(A, SIZE)  # where it was: it is back
    assert (bar.address, bar.known, bar.ambiguous) == (A, 1, False)
    bar.unmapped(A, SIZE)
    assert bar.known == 0, "those that were there beside it are not it"
    bar.unmapped(B, SIZE)
    bar.mapped(B, SIZE)
    assert bar.address == B, "but one that came anew may be"


def test_what_is_not_a_region_of_that_size_cannot_go() -> None:
    bar = told(A)
    assert bar.choose(A)
    bar.unmapped(A, SIZE // 2)
    bar.unmapped(B, SIZE)
    assert bar.address == A
    bar.unmapped(A, SIZE)
    assert bar.address is None
