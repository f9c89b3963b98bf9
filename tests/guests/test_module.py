"""The kernel module builds without warnings, by make and by DKMS."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nodma import __version__
from nodma.guest import Kernel, Kit
from nodma.guest.chroot import run_inside
from nodma.guest.kernel import MODULE_SOURCE

pytestmark = pytest.mark.timeout(900)


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
