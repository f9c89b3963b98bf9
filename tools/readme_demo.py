"""Run ``nodma demo``, and put what it prints into the README: ``python -m tools.readme_demo``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

README: Final = Path(__file__).parents[1] / "README.md"
_SHOWN: Final = re.compile(r"(?<=^```text\n)nodma demo: .*?(?=^```$)", re.MULTILINE | re.DOTALL)


def run_demo() -> str:
    """Return what the demo prints where there is no terminal. Raises CalledProcessError if it fails."""
    command = [sys.executable, "-m", "nodma", "demo"]
    printed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    lines = re.sub(r'(?<="path":")[^"]*/', "/tmp/nodma-demo-x/", printed).splitlines()  # noqa: S108 - only shown
    return "".join(f"{line.rstrip()}\n" for line in lines)


def shown() -> str:
    """Return what the README shows."""
    (found,) = _SHOWN.findall(README.read_text())
    return str(found)


def without_figures(text: str) -> list[str]:
    """Return the words of what the demo prints, without what differs from run to run, and between builds."""
    text = re.sub(r"\d[\d,.]*", "#", text)
    return re.sub(r"compiled|interpreted", "#", text).split()


def main() -> None:
    """Rewrite the README."""
    printed = run_demo()
    README.write_text(_SHOWN.sub(lambda _: printed, README.read_text()))


if __name__ == "__main__":
    main()
