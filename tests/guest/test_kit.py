"""The cache: found, locked, filled once, taken up again, and cleaned; the mirror; QEMU's versions."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from nodma.errors import GuestError, UsageError
from nodma.guest import debian, kit
from nodma.guest.command import run
from nodma.guest.debian import DebianKernel, unpack
from nodma.guest.job import Job
from nodma.guest.kit import Kit, clean, set_up
from nodma.guest.kit_directory import kit_directory, locked
from nodma.guest.qemu import Qemu
from nodma.guest.tools import Tools

KERNELS = [
    DebianKernel("bookworm", "6.1.0-50-cloud-amd64", "6.1.176-1"),
    DebianKernel("trixie", "6.12.117+deb13-cloud-amd64", "6.12.117-1"),
]


def finish(directory: Path) -> None:
    """What a setup leaves behind at its end."""
    directory.mkdir(parents=True, exist_ok=True)
    record = {"format": kit._FORMAT, "has_qemu": True, "kernels": [asdict(kernel) for kernel in KERNELS]}
    (directory / "kit.json").write_text(json.dumps(record))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("NODMA_KIT", raising=False)
    assert kit_directory() == tmp_path / "xdg" / "nodma"
    monkeypatch.setenv("NODMA_KIT", str(tmp_path / "named"))
    assert kit_directory() == tmp_path / "named"
    assert kit_directory(tmp_path / "given") == tmp_path / "given"


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    """Another process holds it until it is told to go on."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from nodma.guest.kit_directory import locked\n"
            "with locked(Path(sys.argv[1]), 'setup'): print('held', flush=True); sys.stdin.readline()",
            tmp_path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        waited = []

        def let_go() -> None:
            waited.append(True)
            assert holder.stdin
            holder.stdin.close()

        with locked(tmp_path, "setup", let_go):
            assert holder.wait(timeout=10) == 0
    assert waited == [True]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"cannot be written.*--kit or \$NODMA_KIT"),
        locked(tmp_path / "file", "x"),
    ):
        pass


def test_without_a_kit_it_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run `nodma guest setup`"):
        Kit.open(tmp_path)


def test_a_kit_of_another_format_is_none(tmp_path: Path) -> None:
    (tmp_path / "kit.json").write_text('{"format": 0}')
    with pytest.raises(UsageError, match="there is no guest kit"):
        Kit.open(tmp_path)


def test_two_setups_at_once_fetch_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched = []
    begun = threading.Event()

    def fetch(directory: Path, *_: object) -> None:
        fetched.append(directory)
        begun.wait(timeout=10)
        finish(directory)

    monkeypatch.setattr(kit, "_fetch", fetch)
    kits: list[Kit] = []

    def waiting(what: str, _: float) -> None:
        assert "waiting for another setup" in what
        begun.set()

    threads = [
        threading.Thread(target=lambda: kits.append(set_up(tmp_path, mirror="m", progress=waiting))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert fetched == [tmp_path]
    assert len(kits) == 2


class Mirror:
    """In place of apt: gives what it is asked for, and remembers it."""

    asked: list[str]

    def __init__(self, *_: object) -> None:
        pass

    def update(self) -> None:
        pass

    def kernels(self, flavour: str, suites: tuple[str, ...] = debian.SUITES) -> list[DebianKernel]:
        return [DebianKernel(suite, f"6.12.117-{flavour}", "6.12.117-1") for suite in suites]

    def download(self, packages: list[str], _: object) -> list[Path]:
        type(self).asked = packages
        return []


def test_extras_are_fetched_by_name_and_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(kit, "Apt", Mirror)
    opened = set_up(tmp_path, mirror="m")
    assert not opened.has("generic")
    with pytest.raises(UsageError, match="nodma guest setup --with generic"):
        opened.kernel("generic")
    opened = set_up(tmp_path, mirror="m", extras=["generic"])
    assert Mirror.asked == ["linux-image-6.12.117-amd64", "linux-headers-6.12.117-amd64"]
    assert opened.has("generic")
    assert not opened.has("peers")
    monkeypatch.setattr(kit, "Apt", None)
    assert set_up(tmp_path, mirror="m", extras=["generic"]) == opened


def test_without_a_mirror_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kit, "host_mirror", lambda: None)
    with pytest.raises(UsageError, match="--mirror URL"):
        set_up(tmp_path)


def test_kernels_are_found_by_version_release_and_suite(tmp_path: Path) -> None:
    finish(tmp_path)
    for kernel in KERNELS:
        image = tmp_path / "root" / "boot" / f"vmlinuz-{kernel.release}"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    opened = Kit.open(tmp_path)
    assert opened.kernel("6.12") == opened.kernel("trixie") == opened.kernel("6.12.117+deb13-cloud-amd64")
    assert opened.kernel("6.1").release == "6.1.0-50-cloud-amd64"
    with pytest.raises(UsageError, match=r"no kernel '5\.10'; it has 6\.1, 6\.12"):
        opened.kernel("5.10")


def test_cleaning_removes_the_kit_and_nothing_else(tmp_path: Path) -> None:
    finish(tmp_path / "cache")
    (tmp_path / "cache" / "root" / "usr").mkdir(parents=True)
    (tmp_path / "cache" / "mine.img").touch()
    assert clean(tmp_path / "cache") == tmp_path / "cache"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mine.img"]
    (tmp_path / "cache" / "mine.img").unlink()
    clean(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert clean(tmp_path / "cache") is None


def test_a_directory_with_packages_half_unpacked_is_begun_anew(tmp_path: Path) -> None:
    left = tmp_path / "root.partial" / "left"
    left.mkdir(parents=True)
    unpack([], tmp_path / "root", lambda *_: None)
    assert not left.exists()
    assert (tmp_path / "root" / "bin").is_symlink()
    assert (tmp_path / "root" / "usr" / "bin" / "awk").is_symlink()


def test_a_package_that_is_none_is_named(tmp_path: Path) -> None:
    package = tmp_path / "broken.deb"
    package.write_bytes(b"no package")
    with pytest.raises(GuestError, match=r"unpacking broken\.deb failed"):
        unpack([package], tmp_path / "root", lambda *_: None)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("system", "targets", "mirror"),
    [
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "other http://o/\nbookworm http://m/debian/\n", "http://m/debian"),
        ('ID="debian"\nVERSION_CODENAME="trixie"\n', "trixie mirror+file:/x\n", "mirror+file:/x"),
        ("ID=debian\nVERSION_CODENAME=trixie\n", "bookworm http://m/\n", None),
        ("ID=ubuntu\nVERSION_CODENAME=noble\n", "noble http://m/\n", None),
        ("ID=debian\n", "bookworm http://m/\n", None),
    ],
)
def test_the_mirror_is_that_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, targets: str, mirror: str | None
) -> None:
    release = tmp_path / "os-release"
    release.write_text(system)
    monkeypatch.setattr(debian, "_OS_RELEASE", release)
    monkeypatch.setattr(debian, "run", lambda *_, **__: targets)
    assert debian.host_mirror() == mirror


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        ("echo QEMU emulator version 7.2.17", "it is 7.2.17, and vfio-user-pci came with 10.1"),
        ("echo QEMU emulator version 10.0.2", "it is 10.0.2, and vfio-user-pci came with 10.1"),
        ("echo QEMU emulator version 10.1.0", "it is 10.1.0, built without vfio-user-pci"),
        ("echo 'name \"vfio-user-pci\", bus PCI' QEMU emulator version 10.1.0", None),
        ("echo no; exit 1", "it does not run: no"),
        ("exit 1", "it does not run: it printed nothing"),
    ],
)
def test_which_qemu_will_do(tmp_path: Path, says: str, problem: str | None) -> None:
    path = script(tmp_path / "qemu-system-x86_64", says)
    assert Qemu((str(path),), "test").problem == problem
    if problem:
        with pytest.raises(UsageError, match="cannot be used"):
            Qemu.named(path)


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        ("exit 0", None),
        ("echo KVM internal error. Suberror: 1 >&2; sleep 100", "Linux did not run: KVM internal error. Suberror: 1"),
        ("exit 3", "Linux did not run: QEMU ended with 3"),
        ("exec sleep 100", "Linux did not get as far as looking for its disk in 1 s"),
    ],
)
def test_an_accelerator_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str, problem: str | None
) -> None:
    monkeypatch.setattr("nodma.guest.qemu._PROBE_SECONDS", 1.0)
    path = script(tmp_path / "qemu", says)
    assert Qemu((str(path),), "test").accelerator_problem("tcg", tmp_path / "vmlinuz") == problem


def test_a_failed_command_shows_its_last_lines_and_its_log(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"(?s)trying failed with 3; all of it is in .*log:\n    two$"):
        run(["sh", "-c", "echo two >&2; exit 3"], "trying", log=tmp_path / "log")
    with pytest.raises(GuestError, match="needs the program nodma-absent, which is not installed"):
        run(["nodma-absent"], "trying")


def test_a_busybox_that_is_not_static_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="none is on PATH"):
        Tools.of_this_machine(Qemu(("qemu",), "test"), tmp_path)
    script(tmp_path / "busybox", "/lib64/ld-linux-x86-64.so.2")
    with pytest.raises(UsageError, match="is not: install busybox-static"):
        Tools.of_this_machine(Qemu(("qemu",), "test"), tmp_path)


def test_a_program_that_the_kit_does_not_carry(tmp_path: Path) -> None:
    tools = Tools(Qemu(("qemu",), "test"), tmp_path, Path("/bin/sh"))
    with pytest.raises(UsageError, match=r"does not carry 'gcc'; it has fio"):
        Job("true", programs=["gcc"]).root_file_system(tmp_path, tools)
    with pytest.raises(UsageError, match="fio is for guests with the kit"):
        Job("true", programs=["fio"]).root_file_system(tmp_path, tools)
