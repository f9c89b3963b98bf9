"""Draw what was measured, as SVG for the docs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.peers import BARE, DAEMON, DAEMON_BEST, INTERPRETED, OURS
from nodma.errors import UsageError

COLOURS: Final[Mapping[str, str]] = {
    OURS.name: "#1b6ca8",
    INTERPRETED.name: "#8fbcdb",
    DAEMON.name: "#c9c9c9",
    DAEMON_BEST.name: "#8a8a8a",
    BARE.name: "#e0a030",
}
_BAR: Final = 0.16
_SMALL: Final = 4 << 10

Row = dict[str, Any]
Figure = Callable[[Row], float]


def check() -> None:
    """Raise UsageError if nothing can be drawn here."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("a chart needs matplotlib: use make chart, or pip install --group bench")


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Write a chart of the comparison to ``path``. Raises UsageError if it was not made, or for want of matplotlib."""
    check()
    groups = grouped(record.get("compare", ()))
    if not groups:
        raise UsageError("a chart needs the 4K lines of the part compare: do not leave them out")
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "nodma", "font.size": 9})
    from matplotlib import patches, pyplot

    drawing, axes = pyplot.subplots(1, 2, figsize=(11, 0.95 * len(groups) + 1.2), sharey=True, layout="constrained")
    _bars(axes[0], groups, lambda row: median(run["rate"] for run in row["runs"]) / 1e3, "thousand requests a second")
    _bars(axes[1], groups, lambda row: median(run["device_cpu_us"] for run in row["runs"]), "device CPU, us a request")
    axes[0].invert_yaxis()
    handles = [patches.Patch(color=colour) for colour in COLOURS.values()]
    drawing.legend(handles, list(COLOURS), loc="outside lower center", ncols=len(COLOURS), frameon=False)
    drawing.suptitle("4 KiB requests at random, from the page cache: median of the rounds")
    drawing.savefig(path, metadata={"Date": None})
    pyplot.close(drawing)


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The 4 KiB rows by work, in the order in which they are shown: ext4 before tmpfs, reads before writes."""
    groups: dict[str, list[Row]] = {}
    small = [row for row in rows if row["bytes"] == _SMALL and row["peer"] in COLOURS]
    for row in sorted(small, key=lambda row: (row["on"] == "tmpfs", row["write"], not row["polled"], row["depth"])):
        how = "polled" if row["polled"] else "notified"
        name = f"{'write' if row['write'] else 'read'}, depth {row['depth']}\n{how}, {row['on']}"
        groups.setdefault(name, []).append(row)
    return groups


def _bars(axis: Any, groups: Mapping[str, list[Row]], figure: Figure, label: str) -> None:
    for place, rows in enumerate(groups.values()):
        present = [name for name in COLOURS if any(row["peer"] == name for row in rows)]
        for row in rows:
            at = place + (present.index(row["peer"]) - (len(present) - 1) / 2) * _BAR
            value = figure(row)
            axis.barh(at, value, height=_BAR * 0.92, color=COLOURS[row["peer"]])
            axis.annotate(f"{value:,.3g}", (value, at), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.set_xlabel(label)
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
