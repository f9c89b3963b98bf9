"""``nodma size``, for people and for programs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from nodma.cli import cli
from nodma.errors import UsageError


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["size", *arguments])


def test_each_device_has_a_pool() -> None:
    record = json.loads(run("blk,depth=32", "blk,queues=2,request=64K,count=2", "--json").output)
    assert [device["peak_slots"] for device in record["devices"]] == [164, 8 + 128 * 35, 8 + 128 * 35]
    assert record["pools"] == [512 << 10, 16 << 20, 16 << 20]
    assert record["memory"] == sum(record["pools"])


def test_a_shared_pool_holds_all_or_those_that_are_busy_at_once() -> None:
    every = json.loads(run("--share", "blk,depth=64,count=4", "--json").output)
    some = json.loads(run("--share", "--at-once", "1", "blk,depth=64,count=4", "--json").output)
    assert (every["pools"], some["pools"]) == ([4 << 20], [1 << 20])


def test_for_people() -> None:
    shown = run("--share", "blk,depth=32,count=2").output
    assert "blk, 1 x 256, depth 32, 4K" in shown
    assert shown.count("shared") == 2
    assert shown.endswith("memory: 1.00 MiB\n")
    assert run("blk,count=2").output.endswith("MiB in 2 pools\n")


def test_pipes_get_no_padding() -> None:
    lines = run("blk,count=2").output.splitlines()
    assert all(line and line == line.rstrip() for line in lines)


def test_forty_columns_get_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodma.cli.console._WIDTH", 40)
    shown = run("blk,queues=16,queue_size=1024,depth=1024,request=1M").output
    assert shown.startswith("blk, 16 x 1024, depth 1024, 1M\n  rings KiB     448\n  in flight KiB ")
    assert max(map(len, shown.splitlines())) <= 40


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["net"], "'net' is not a device whose needs are known"),
        (["blk,width=3"], "a disk has no 'width'"),
        (["blk,depth"], "depth needs a number"),
        (["blk,depth=many"], "'blk,depth=many': depth: invalid size 'many'"),
        (["blk", "--slot-size", "3K"], "powers of two"),
        (["blk", "--share", "--profile", "dmb"], "cannot share a pool"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], why: str) -> None:
    done = run(*arguments)
    assert isinstance(done.exception, UsageError)
    assert why in str(done.exception)


def test_at_once_is_for_shared_pools() -> None:
    assert run("blk", "--at-once", "1").exit_code == 2


def test_the_object_has_a_format_number() -> None:
    assert json.loads(run("blk", "--json").output)["format"] == 1
