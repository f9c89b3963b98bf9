"""Manual pages, completion scripts and systemd units in docs/: up to date, and taken by the programs they are for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"there is no {program} here")


def test_pages_and_completion_are_those_of_the_commands() -> None:
    done = run(sys.executable, ROOT / "tools" / "man_pages.py", "--check")
    assert (done.returncode, done.stderr) == (0, "")


@needs("groff")
def test_pages_are_roff() -> None:
    for page in sorted((DOCS / "man").glob("*.1")):
        done = run("groff", "-man", "-Tutf8", "-ww", page)
        assert (done.returncode, done.stderr) == (0, ""), page
        assert "EXIT STATUS" in re.sub(".\b", "", done.stdout)  # bold is what is written over itself


@needs("bash")
def test_bash_completes_commands_and_options() -> None:
    script = (
        f"PATH={Path(sys.executable).parent}:$PATH; source {DOCS / 'completion' / 'nodma.bash'};"
        " COMP_WORDS=({words}); COMP_CWORD={at}; _nodma_completion nodma; echo ${{COMPREPLY[@]}}"
    )
    done = run("bash", "-c", script.format(words="nodma se", at=1))
    assert done.stdout.split() == ["serve"]
    done = run("bash", "-c", script.format(words="nodma serve blk --socket-", at=3))
    assert done.stdout.split() == ["--socket-path", "--socket-mode", "--socket-group"]


@needs("systemd-analyze")
def test_units_are_units(tmp_path: Path) -> None:
    for name in ("nodma-disk@.service", "nodma-disk@.socket"):
        text = (DOCS / "systemd" / name).read_text()
        assert "/usr/bin/nodma" in text or name.endswith(".socket")
        text = text.replace("/usr/bin/nodma", f"{Path(sys.executable).parent}/nodma")
        text = "\n".join(line for line in text.splitlines() if not line.startswith("Documentation=man:"))
        (tmp_path / name).write_text(text)
    for name in ("nodma-disk@x.service", "nodma-disk@x.socket"):
        shutil.copy(tmp_path / name.replace("@x", "@"), tmp_path / name)
        done = run("systemd-analyze", "verify", "--man=no", tmp_path / name)
        assert (done.returncode, done.stderr) == (0, "")
