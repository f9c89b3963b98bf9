"""Change the code of a package, one small change at a time, and see whether its tests notice: `make mutants`.

`python -m tools.mutants PACKAGE...` makes mutants of each package with mutmut, in a copy of the repository below
build/mutants, and runs the package's tests on them, interpreted. A mutant that no test fails on has survived: it must
be listed in tests/mutants/PACKAGE.txt, under a line that gives the reason. The files are of this form::

    # Why these are harmless
    module.Class.function: old line -> new line

A survivor that is not listed, and one that is listed and does not survive, fail the run. ``--limit SECONDS`` ends a
package's run early; what it did not get to is kept, and the next run goes on there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

ROOT: Final = Path(__file__).parents[1]
WORK: Final = ROOT / "build" / "mutants"
PACKAGES: Final = {
    "ring": ("tests/ring", "tests/device/test_blk_engine.py", "tests/pci_function/test_queue_thread.py"),
    "window": ("tests/window",),
    "device": ("tests/device",),
    "pci_function": ("tests/pci_function", "tests/device/test_base.py"),
    "vfio_user": ("tests/vfio_user",),
}
"""By package, the tests that its mutants have to get past."""
_COPIED: Final = ("src", "tests", "docs", "examples", "tools", "benchmarks", "pyproject.toml", "README.md")
_WORDS: Final = (
    r"^\s*log\.",  # what is logged
    r"^\s*f?\"",  # a line of a message
    r"raise \w+\(",
    r"^\s*return \w+\(\s*$",
    r"^\s*assert ",
)
"""Lines that are left as they are: messages, whose wording no test need hold, and what states types."""
_SURVIVED: Final = frozenset({0, 5, 33})
_UNKNOWN: Final = frozenset({None, 2})

_CONFIG: Final = """

[tool.mutmut]
source_paths = ["src"]
only_mutate = ["src/nodma/{package}/*"]
do_not_mutate_patterns = {words}
also_copy = ["docs", "examples", "tools", "benchmarks", "README.md"]
pytest_add_cli_args = ["-q", "-x", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
timeout_multiplier = 6.0
timeout_constant = 2.0
type_check_command = [
    "mypy", "--output", "json", "--no-warn-unused-ignores", "--no-warn-unreachable", "src/nodma/{package}",
]
"""


def prepare(package: str) -> Path:
    """Copy what mutmut needs, as it is now; return where to.

    What it knew of mutants in unchanged functions stays, but for survivors: tests may notice them by now.
    """
    place = WORK / package
    place.mkdir(parents=True, exist_ok=True)
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in _COPIED:
        source, copy = ROOT / name, place / name
        if source.is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy, ignore=ignore)
        else:
            shutil.copy2(source, copy)
    for meta in (place / "mutants").rglob("*.meta"):
        known = json.loads(meta.read_text())
        codes = known["exit_code_by_key"]
        known["exit_code_by_key"] = {name: None if code in _SURVIVED else code for name, code in codes.items()}
        meta.write_text(json.dumps(known))
    with (place / "pyproject.toml").open("a") as config:
        words, tests = json.dumps(list(_WORDS)), json.dumps(list(PACKAGES[package]))
        config.write(_CONFIG.format(package=package, words=words, tests=tests))
    return place


def run(place: Path, limit: float | None, children: int) -> bool:
    """Run mutmut there for so many seconds at most; return whether it came to its end."""
    log = place / "mutmut.log"
    environment = {
        **os.environ,
        "NODMA_PURE": "1",
        "HYPOTHESIS_PROFILE": "brief",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            ["mutmut", "run", "--max-children", str(children)],
            cwd=place, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 15)
                process.wait()


def results(place: Path) -> dict[str, int | None]:
    """Return how the tests ended on each mutant: mutmut's name of it, and pytest's exit code or a signal."""
    found: dict[str, int | None] = {}
    for meta in sorted((place / "mutants").rglob("*.meta")):
        found |= json.loads(meta.read_text())["exit_code_by_key"]
    return found


def describe(place: Path, mutants: list[str]) -> Iterator[str]:
    """Say what each mutant changes."""
    program = (
        "import sys\n"
        "from mutmut.mutation.diff_apply import get_diff_for_mutant\n"
        "for name in sys.stdin.read().split():\n"
        "    print('\\x1e' + name)\n"
        "    print(get_diff_for_mutant(name))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, input="\n".join(mutants), capture_output=True, text=True, check=True
    )
    for part in filter(None, done.stdout.split("\x1e")):
        name, _, diff = part.partition("\n")
        lines = diff.splitlines()
        old = " ".join(line[1:].strip() for line in lines if line.startswith("-") and not line.startswith("---"))
        new = " ".join(line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++"))
        yield f"{_readable(name)}: {old} -> {new}"


def _readable(name: str) -> str:
    """Return a mutant's function, as a person names it."""
    function = re.sub(r"__mutmut_\d+$", "", name).replace("ǁ", ".")
    return re.sub(r"\.(x_|x\.)", ".", function)


def listed(package: str) -> dict[str, str]:
    """Return the survivors that are known, with the reason for each."""
    path = ROOT / "tests" / "mutants" / f"{package}.txt"
    reason, found = "", {}
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("#"):
            reason = line.lstrip("# ")
        elif line:
            found[line] = reason
    return found


@click.command()
@click.argument("packages", nargs=-1, type=click.Choice(list(PACKAGES)))
@click.option("--limit", type=float, metavar="SECONDS", help="End a package's run after so long.")
@click.option("--children", default=2, show_default=True, help="Mutants tried at once.")
def main(packages: tuple[str, ...], limit: float | None, children: int) -> None:
    """Make mutants of PACKAGES, or of all, and run their tests on each."""
    failed = False
    for package in packages or PACKAGES:
        begin = time.monotonic()
        place = prepare(package)
        finished = run(place, limit, children)
        found = results(place)
        if not found:
            click.echo((place / "mutmut.log").read_text()[-2000:])
            sys.exit(f"mutants: mutmut made none of {package}; what it said is above")
        survivors = sorted(describe(place, [name for name, code in found.items() if code in _SURVIVED]))
        (place / "survivors.txt").write_text("".join(f"{line}\n" for line in survivors))
        known = listed(package)
        new = [line for line in survivors if line not in known]
        gone = [line for line in known if line not in survivors] if finished else []
        counted = Counter(
            "survived" if code in _SURVIVED else "not tried" if code in _UNKNOWN else "killed"
            for code in found.values()
        )
        click.echo(
            f"{package}: {len(found)} mutants, {counted['killed']} killed, {counted['survived']} survived"
            f" ({len(new)} not listed), {counted['not tried']} not tried, {time.monotonic() - begin:.0f} s"
        )
        for line in new:
            click.echo(f"  not listed: {line}")
        for line in gone:
            click.echo(f"  listed, but killed or gone: {line}")
        failed |= bool(new or gone or not finished)
    sys.exit(failed)


if __name__ == "__main__":
    main()
