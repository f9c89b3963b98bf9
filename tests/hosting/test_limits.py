"""Limits that are raised, and that are found too low before anything is served."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodma.errors import Unavailable
from nodma.hosting import limits
from nodma.hosting.limits import Needs, raise_descriptor_limit


@pytest.fixture(autouse=True)
def descriptor_limit() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_is_raised_to_the_hard_one(descriptor_limit: tuple[int, int]) -> None:
    hard = descriptor_limit[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert raise_descriptor_limit() == hard
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_soft_limit_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 1000))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_descriptor_limit() == 100


def test_too_many_queues_for_the_hard_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "raise_descriptor_limit", lambda: 1024)
    needs = Needs()
    needs.add(64)
    with pytest.raises(Unavailable, match=r"128 queues need up to 1248 open files, and the hard limit .* is 1024"):
        needs.add(64)


def test_too_many_threads_for_a_control_group_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pids.max").write_text("100\n")
    (tmp_path / "pids.current").write_text("40\n")
    monkeypatch.setattr(limits, "_control_groups", lambda: [tmp_path / "none", tmp_path])
    Needs().add(8)
    with pytest.raises(Unavailable, match="16 queues need up to 88 threads, and this process may have 60"):
        Needs().add(16)
    (tmp_path / "pids.max").write_text("max\n")
    Needs().add(16)


def test_too_many_threads_for_an_ordinary_user_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_control_groups", list)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (50, 100_000))
    monkeypatch.setattr(limits.resource, "setrlimit", lambda *_: None)
    with pytest.raises(Unavailable, match="may have 50"):
        Needs().add(16)
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # whom that limit does not hold
    Needs().add(16)


def test_control_groups_of_both_versions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "9:name=systemd:/x\n8:pids:/a/b\n0::/c\n"
    monkeypatch.setattr(Path, "read_text", lambda self: lines if str(self) == "/proc/self/cgroup" else "")
    assert [str(group) for group in limits._control_groups()] == [
        "/sys/fs/cgroup/pids/a/b",
        "/sys/fs/cgroup/pids/a",
        "/sys/fs/cgroup/pids",
        "/sys/fs/cgroup",
        "/sys/fs/cgroup/c",
        "/sys/fs/cgroup",
    ]
