"""Values of options: sizes, paths, permissions, groups."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from nodma.errors import Unavailable, UsageError
from nodma.hosting.options import (
    FilePath,
    HostOptions,
    PoolSize,
    Size,
    SocketMode,
    check_path,
    check_policy,
    find_group,
)
from nodma.spec.profiles import DMB, SWIOTLB, Policy


def test_values_that_are_right() -> None:
    assert Size().convert("3K", None, None) == 3 << 10
    assert Size().convert(7, None, None) == 7
    assert PoolSize().convert("1M", None, None) == 1 << 20
    assert SocketMode().convert("0660", None, None) == 0o660
    assert SocketMode().convert(0o600, None, None) == 0o600
    assert FilePath().convert("a b,c", None, None) == Path("a b,c")
    assert HostOptions(pool=1 << 20, pool_users=4).share_of_pool == 1 << 18
    check_policy(SWIOTLB, Policy.HOPEFUL)


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        (Size(), "many", "invalid size 'many'"),
        (PoolSize(), "3M", "a power of two from 64K to 4G, as a PCI BAR is, got 3M"),
        (PoolSize(), "8G", "got 8G"),
        (PoolSize(), "0", "got 0"),
        (SocketMode(), "rw", "invalid mode 'rw'"),
        (SocketMode(), "1777", "invalid mode '1777'"),
        (FilePath(), "", "invalid path ''"),
        (FilePath(), "a\udce4", r"the path a\\udce4 is not UTF-8"),
    ],
)
def test_values_that_are_wrong(kind: click.ParamType, value: str, why: str) -> None:
    with pytest.raises(click.BadParameter, match=why):
        kind.convert(value, None, None)


def test_a_path_is_shown_as_it_must_be_typed() -> None:
    with pytest.raises(UsageError, match="serve it through a symbolic link"):
        check_path(os.fsdecode(b"/tmp/\xff"))


def test_a_policy_that_a_profile_does_not_have() -> None:
    with pytest.raises(UsageError, match="policy hopeful is not available with profile dmb"):
        check_policy(DMB, Policy.HOPEFUL)


def test_groups_have_names_and_numbers() -> None:
    assert find_group("root") == 0
    assert find_group("4711") == 4711
    for wrong in ("", "no-such-group", "²"):
        with pytest.raises(Unavailable, match="no group"):
            find_group(wrong)
