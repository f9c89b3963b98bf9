"""Run the benchmarks: interleaved rounds, medians with their spread, a table and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import path, ring
from nodma import __version__
from nodma.sizes import show_size

DEPTHS = (1, 32, 128)
SIZES = (4 << 10, 64 << 10, 1 << 20)
BUILDS = ("interpreted", "compiled")
KINDS = {"ring": ring.measure, "ring, indirect": partial(ring.measure, indirect=True), "path": path.measure}
IMAGE_BYTES = 64 << 20
TABLE_WIDTH = 152

Key = tuple[str, int, int]


def work(arguments: list[str]) -> None:
    """Measure once, in a process of its own, and print the result."""
    kind, depth, size, seconds, image = arguments
    print(json.dumps(KINDS[kind](Path(image), int(depth), int(size), float(seconds))))


def once(build: str, key: Key, seconds: float, image: Path) -> dict[str, float]:
    """Measure once with one build of the ring."""
    kind, depth, size = key
    environment = {**os.environ, "NODMA_PURE": "1" if build == "interpreted" else "0"}
    command = [sys.executable, "-m", "benchmarks", "--work", kind, str(depth), str(size), str(seconds), str(image)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{kind} at depth {depth} with {show_size(size)} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout)
    if result.pop("ring") != build:
        sys.exit("the compiled ring was not built: install a C compiler, then make setup; or use --build interpreted")
    return result


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs of each (default 3)")
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds a run (default 0.5)")
    parser.add_argument("--only", choices=KINDS, help="one kind of measurement only")
    parser.add_argument("--build", choices=BUILDS, help="one build of the ring only")
    parser.add_argument("--image-dir", type=Path, help="where to put the image (default: the temporary directory)")
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("benchmarks/results/latest.json"))
    asked = parser.parse_args()
    keys = [(kind, depth, size) for kind in KINDS if asked.only in (None, kind) for depth in DEPTHS for size in SIZES]
    builds = [asked.build] if asked.build else list(BUILDS)
    runs: dict[tuple[Key, str], list[dict[str, float]]] = defaultdict(list)
    console = Console()
    if console.width < TABLE_WIDTH:
        console = Console(width=TABLE_WIDTH)  # a number that is cut short is no number
    with tempfile.TemporaryDirectory(prefix="nodma-bench-", dir=asked.image_dir) as directory:
        image = Path(directory) / "disk.img"
        image.write_bytes(os.urandom(IMAGE_BYTES))
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("measuring", total=asked.rounds * len(keys) * len(builds))
            for _ in range(asked.rounds):
                for key in keys:
                    for build in builds:
                        runs[key, build].append(once(build, key, asked.seconds, image))
                        progress.advance(task)
    report(console, runs, keys, builds, asked.json)


def report(
    console: Console,
    runs: dict[tuple[Key, str], list[dict[str, float]]],
    keys: list[Key],
    builds: list[str],
    file: Path,
) -> None:
    """Print a table, and write everything that was measured to ``file``."""
    table = Table(title="reads: median of the rounds (least to most), side by side", title_justify="left")
    for name in ("what", "depth", "size"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for build in builds:
        table.add_column(f"{build}\nrequests/s", justify="right")
        table.add_column("\nMB/s", justify="right")
        table.add_column("\nCPU us", justify="right")
    if len(builds) == 2:
        table.add_column("compiled over\ninterpreted", justify="right")
    rows = []
    for key in keys:
        kind, depth, size = key
        cells = [kind, str(depth), show_size(size)]
        for build in builds:
            rates = sorted(run["rate"] for run in runs[key, build])
            cpu = median(run["cpu_us"] for run in runs[key, build])
            middle = median(rates)
            cells += [f"{middle:,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f})", f"{middle * size / 1e6:,.0f}", f"{cpu:.2f}"]
            rows.append(
                {"what": kind, "depth": depth, "size": size, "ring": build, "rate": middle, "rates": rates}
                | {"bytes_per_second": middle * size, "cpu_us": cpu}
            )
        if len(builds) == 2:
            pairs = zip(runs[key, "compiled"], runs[key, "interpreted"], strict=True)
            ratios = sorted(one["rate"] / other["rate"] for one, other in pairs)
            cells.append(f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")
        table.add_row(*cells)
    console.print(table)
    console.print("ring: the device's end in one process, a replaying front end, polled; CPU is all of it.")
    console.print("ring, indirect: the same through indirect tables, as Linux makes requests.")
    console.print("path: device process, socket, reference driver in Python, interrupts; CPU is the driver's.")
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "version": __version__,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
    }
    file.write_text(json.dumps({"about": about, "results": rows}, indent=1) + "\n")
    console.print(f"written to {file}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2:])
    else:
        main()
