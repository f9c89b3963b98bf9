"""``nodma guest report``, run as docs/confidential-guests.md shows it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "confidential-guests.md"

pytestmark = pytest.mark.timeout(500)


@pytest.mark.usefixtures("kit")
def test_the_report_has_what_the_page_says(
    run_page: Callable[[Path, float], CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_page(PAGE, 390)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    text = (tmp_path / "report.json").read_text()
    report = json.loads(text)
    assert report["format"] == 1
    assert report["errors"] == []
    for key in ("host", "versions", "guest", "bench", "proof", "log", "errors"):
        assert key in report
        assert f"| `{key}` |" in PAGE.read_text()
    assert report["guest"]["memory_types"], "the window is mapped, and Linux lists it"
    assert any("bounces through" in line for line in report["guest"]["module"])
    assert report["proof"]["holds"]
    assert all(one["requests_per_second"] > 0 for one in report["bench"].values())
    assert len(report["log"]) > 100
    assert str(tmp_path) not in text
    assert str(Path.home()) + "/" not in text
    if socket.gethostname() != "localhost":
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
