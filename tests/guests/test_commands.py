"""``nodma guest run``, ``list`` and ``doctor``, as a user runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nodma.guest import Kit
from nodma.guest.debian import SUITES
from nodma.guest.kit import set_up

pytestmark = pytest.mark.timeout(900)


def nodma(*words: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nodma", "guest", *words], capture_output=True, text=True, check=False, **more
    )


def test_run_gives_the_scripts_status_and_its_files(lab: Any, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(
        "disk=$(disk)\ncat /job/word /sys/block/${disk##*/}/size >/out/said\n"
        "mkdir /out/deep\necho x >/out/deep/er\nexit 7\n"
    )
    (tmp_path / "word").write_text("hello\n")
    done = nodma(
        "run", "--json", "--disk", lab.image(size=1 << 20), "--script", script, "--file", tmp_path / "word", "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    record = json.loads(done.stdout)
    assert record["status"] == 7
    assert record["files"] == ["deep/er", "said"]
    assert (tmp_path / "out" / "said").read_text() == "hello\n2048\n"
    assert "bounces through 16384 KiB of BAR 2" in done.stderr


def test_run_with_a_users_own_qemu_and_kernel(lab: Any, kit: Kit, tmp_path: Path) -> None:
    """Nothing of the kit is used but by name, as where there is no kit."""
    kernel = kit.kernel("trixie")
    assert kernel.modules
    program = tmp_path / "qemu"
    program.write_text(f'#!/bin/sh\nexec {" ".join(kit.qemu.arguments())} "$@"\n')
    program.chmod(0o755)
    script = tmp_path / "script"
    script.write_text("test -b $(disk)\n")
    shutil.copy(kit.root / "usr/bin/busybox", tmp_path)
    done = nodma(
        "run", "--kit", tmp_path / "none", "--qemu", program, "--kernel", kernel.image, "--modules", kernel.modules,
        "--module-file", kernel.build_module(kit.directory), "--disk", lab.image(), "--script", script,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin:/usr/sbin:/sbin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_script_that_hangs_is_ended_and_said_so(tmp_path: Path, kit: Kit) -> None:
    script = tmp_path / "script"
    script.write_text("echo so far, so good\nsleep 1000\n")
    done = nodma("run", "--no-module", "--timeout", "20", "--script", script)
    assert done.returncode == 125
    assert "the guest did not end in 20 s" in done.stderr
    assert "so far, so good" in done.stderr


def test_list(kit: Kit) -> None:
    listed = json.loads(nodma("list", "--json").stdout)
    assert [kernel["suite"] for kernel in listed["kernels"]] == list(SUITES)
    assert listed["directory"] == str(kit.directory)


@pytest.mark.usefixtures("kit")
def test_doctor_has_tried_what_it_says() -> None:
    done = nodma("doctor", "--json")
    assert done.returncode == 0, done.stdout
    found = {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["TCG"]["fine"] or found["KVM"]["fine"]
    assert found["QEMU"]["fine"]


def test_setting_up_again_fetches_nothing(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodma.guest.kit.Apt", None)
    assert set_up(kit.directory) == kit
