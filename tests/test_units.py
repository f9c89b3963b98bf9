"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.errors import UsageError
from nodma.units import parse_size, show_size


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("65536", 65536), ("64K", 65536), ("16m", 16 << 20), ("4GiB", 4 << 30), (" 1 ", 1)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5M", "16 M", "1T", "0x10", "९", "9" * 30])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid size"):
        parse_size(text)


@given(st.integers(0, 2**45))
def test_what_is_shown_can_be_read(size: int) -> None:
    assert parse_size(show_size(size)) == size
