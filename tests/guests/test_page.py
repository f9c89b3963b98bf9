"""The commands of docs/guests.md, run as a reader would run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guests.md"

pytestmark = pytest.mark.timeout(900)


@pytest.mark.usefixtures("kit")
def test_commands_of_the_page_work(run_page: Callable[[Path, float], CompletedProcess[str]]) -> None:
    done = run_page(PAGE, 390)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
