"""Every command and every piece of Python in the README and in docs/ is run as a reader would run it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


NEEDS_GUESTS = {"guests.md", "confidential-guests.md"}
"""Pages whose commands boot guests: tests/guests/test_page.py and test_report.py run those."""


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in NEEDS_GUESTS and "```console" in page.read_text()],
    ids=lambda page: page.name,
)
def test_commands_of_a_page_work(page: Path, run_page: Callable[[Path, float], CompletedProcess[str]]) -> None:
    done = run_page(page, 60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stderr.lower(), done.stderr


@pytest.mark.parametrize("name", ["dice.py", "sided_dice.py", "roll.py"])
def test_the_guide_shows_the_examples_as_they_are(name: str) -> None:
    source = (ROOT / "examples" / name).read_text()
    shown = blocks(ROOT / "docs" / "write-a-device.md", "python")
    code = source[source.index("import ") :]
    assert code.strip() in [block.strip() for block in shown]


def test_python_of_the_confinement_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(ROOT / "docs" / "confinement.md", "python")
    exec(compile(block, "docs/confinement.md", "exec"), {})
    assert "a canary" in capsys.readouterr().out.splitlines()[1]  # it is in this very process


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"`?\bmake ([a-z0-9]+)\b", page.read_text())}
    assert {"demo", "test", "bench"} <= named & targets
    wrong = {target for page in PAGES for target in re.findall(r"`make ([a-z0-9]+)`", page.read_text())} - targets
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link
