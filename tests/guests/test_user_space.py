"""nodma's own driver in a guest, with no driver in its kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nodma
from nodma.guest import Job, Kernel

pytestmark = [pytest.mark.timeout(900), pytest.mark.newest_suffices]
SOURCE = Path(nodma.__file__).parent


@pytest.fixture(scope="module")
def package() -> dict[str, Path]:
    """This package, as files for a guest's Python."""
    return {f"python/nodma/{path.relative_to(SOURCE)}": path for path in SOURCE.rglob("*.py")}


def test_500_verified_writes_and_reads_from_user_space(lab: Any, kernel: Kernel, package: dict[str, Path]) -> None:
    files = package | {"user_space.py": lab.scenarios / "user_space.py"}
    run = lab.run(kernel, "user_space", [lab.image()], drivers=["virtio_pci"], programs=["python"], files=files)
    report = json.loads(run.outcome.file("report.json"))
    assert report["reads"] >= report["rounds"] == 500
    assert run.outside == 0
    assert run.reports[0]["device"]["writes"] == 500
    assert run.reports[0]["interrupts"] == 0


def test_two_functions_in_one_pool_from_user_space(lab: Any, newest: Kernel, package: dict[str, Path]) -> None:
    job = Job(
        (lab.scenarios / "user_space_slot.sh").read_text(),
        drivers=["virtio_pci"],
        programs=["python"],
        files=package | {"user_space_slot.py": lab.scenarios / "user_space_slot.py"},
    )
    run = lab.run_slot(newest, job, [lab.image("owner"), lab.image("sharer")])
    assert json.loads(run.outcome.file("report.json")) == {"same": True, "copied": 0, "one region": True}
    assert run.outside == 0
