"""``nodma guest prove``, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nodma.guest import Kit

pytestmark = pytest.mark.timeout(900)
SCREEN = 40


def prove(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nodma", "guest", "prove", *options], capture_output=True, text=True, check=False
    )


@pytest.mark.usefixtures("kit")
def test_it_fits_a_screen_and_holds() -> None:
    done = prove()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) < SCREEN
    assert "NOT" not in done.stdout
    assert done.stdout.count("  ok  ") == 11


def test_as_json_on_another_kernel(kit: Kit) -> None:
    done = prove("--json", "--kernel", kit.kernels[-1].release)
    assert (done.returncode, done.stderr) == (0, "")
    proof = json.loads(done.stdout)
    assert proof["holds"] is True
    assert proof["kernel"] == kit.kernels[-1].release
    assert proof["canary_filled"] > 200 << 20
    assert proof["report"]["dma_descriptors_closed"] > 0
    assert proof["report"]["addresses_outside_window"] == 0
    assert all(check["holds"] for check in proof["checks"])
