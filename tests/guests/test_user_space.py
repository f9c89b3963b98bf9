"""nodma's own driver in a guest, with no driver in its kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nodma
from nodma.guest import Kernel

pytestmark = pytest.mark.timeout(240)
SOURCE = Path(nodma.__file__).parent


def test_500_verified_writes_and_reads_from_user_space(lab: Any, kernel: Kernel) -> None:
    files = {f"python/nodma/{path.relative_to(SOURCE)}": path for path in SOURCE.rglob("*.py")}
    files["user_space.py"] = lab.scenarios / "user_space.py"
    run = lab.run(kernel, "user_space", [lab.image()], drivers=["virtio_pci"], programs=["python"], files=files)
    report = json.loads(run.outcome.file("report.json"))
    assert report["reads"] >= report["rounds"] == 500
    assert run.outside == 0
    assert run.reports[0]["device"]["writes"] == 500
    assert run.reports[0]["interrupts"] == 0
