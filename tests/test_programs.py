"""Programs are found where root finds them, whoever looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodma import programs
from nodma.errors import Unavailable


def make_program(directory: Path, name: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def sbin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory of root's programs, which an ordinary user's PATH does not name."""
    monkeypatch.setattr(programs, "_ADMINISTRATION", (str(tmp_path / "sbin"),))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "sbin"


def test_what_only_roots_path_leads_to_is_found(sbin: Path) -> None:
    assert programs.find("chroot") is None
    path = make_program(sbin, "chroot")
    assert programs.find("chroot") == str(path)
    assert programs.require("chroot", "coreutils") == str(path)


def test_a_users_own_program_comes_first(sbin: Path, tmp_path: Path) -> None:
    make_program(sbin, "mke2fs")
    assert programs.find("mke2fs") == str(sbin / "mke2fs")
    own = make_program(tmp_path / "bin", "mke2fs")
    assert programs.find("mke2fs") == str(own)


def test_what_is_missing_is_named_with_its_package(sbin: Path) -> None:
    with pytest.raises(Unavailable, match="mke2fs is missing: install e2fsprogs"):
        programs.require("mke2fs", "e2fsprogs")


def test_a_path_that_has_them_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/usr/local/sbin")
    assert programs.search_path() == "/usr/sbin:/usr/bin:/sbin:/usr/local/sbin"
