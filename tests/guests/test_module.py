"""The kernel module builds without warnings, by make and by DKMS."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nodma import __version__
from nodma.errors import GuestError
from nodma.guest import Kernel, Kit
from nodma.guest.chroot import run_inside
from nodma.guest.kernel import MODULE_SOURCE

pytestmark = pytest.mark.timeout(900)


def make(kernel: Kernel, directory: Path, *arguments: str) -> str:
    """Run make on a copy of the sources; return what it said."""
    assert kernel.root
    shutil.copytree(MODULE_SOURCE, directory, dirs_exist_ok=True)
    headers = f"HEADERS=/usr/src/linux-headers-{kernel.release}"
    command = ["make", "-C", "/build", headers, *arguments, "modules"]
    return run_inside(kernel.root, command, "make", binds={directory: "/build"}, log=directory / "build.log")


def test_make_builds_it_without_warnings(kit: Kit, kernel: Kernel, tmp_path: Path) -> None:
    """That is what the kit does for every guest; here with an empty cache, so that it is done now."""
    module = kernel.build_module(tmp_path)
    said = (module.parent / "build.log").read_text()
    assert "warning" not in said
    info = module.read_bytes()
    assert b"license=GPL" in info
    assert f"\0version={__version__}\0".encode() in info
    assert f"vermagic={kernel.release} ".encode() in info


@pytest.mark.distribution_kernel
def test_it_builds_without_the_warnings_that_kernel_developers_look_for(kernel: Kernel, tmp_path: Path) -> None:
    assert "warning" not in make(kernel, tmp_path, "W=1")


@pytest.mark.distribution_kernel
def test_a_kernel_with_memory_that_has_no_address_is_refused_by_the_build(newest: Kernel, tmp_path: Path) -> None:
    with pytest.raises(GuestError):
        make(newest, tmp_path, "KCFLAGS=-DCONFIG_HIGHMEM=1")
    assert "CONFIG_HIGHMEM), which nodma cannot copy from or to" in (tmp_path / "build.log").read_text()


@pytest.mark.distribution_kernel
def test_dkms_builds_it(kit: Kit, kernel: Kernel, tmp_path: Path) -> None:
    source, state = tmp_path / "source", tmp_path / "state"
    shutil.copytree(MODULE_SOURCE, source)
    state.mkdir()
    assert kernel.root
    run_inside(
        kernel.root,
        ["dkms", "build", f"nodma/{__version__}", "-k", kernel.release],
        "dkms",
        binds={source: f"/usr/src/nodma-{__version__}", state: "/var/lib/dkms"},
    )
    assert [path.name for path in state.rglob("nodma.ko*")]
