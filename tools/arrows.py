"""Who may import whom, from one table: the contract that `lint-imports` holds, and the picture that docs show.

The table is in pyproject.toml, as a contract of the type ``arrows``. A line names a package of nodma, then after a
colon the packages that it may import directly. An import that no line allows breaks the contract, and so does an arrow
that no import uses. `python -m tools.arrows` writes the picture into docs/architecture.md.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

ROOT: Final = "nodma"
PAGE: Final = Path("docs/architecture.md")
BEGIN: Final = "<!-- arrows: written by `python -m tools.arrows` -->\n"
END: Final = "<!-- end of arrows -->\n"
_AT_THE_TOP: Final = ("__init__", "__main__")
"""Modules above all packages, which the picture leaves out."""

Arrows = Mapping[str, tuple[str, ...]]


def parse(lines: list[str]) -> Arrows:
    """Return the table: package or module to what it may import. Raises ValueError for a line that is not one."""
    table: dict[str, tuple[str, ...]] = {}
    for line in lines:
        name, colon, allowed = line.partition(":")
        if not colon or name in table:
            raise ValueError(f"expected one line 'package: packages' for each, got {line!r}")
        table[name] = tuple(allowed.split())
    return table


def read_table(pyproject: Path = Path("pyproject.toml")) -> Arrows:
    """Return the table in a pyproject.toml."""
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    (lines,) = (contract["arrows"] for contract in contracts if contract["type"] == "arrows")
    return parse(lines)


class ArrowsContract(Contract):
    """Every import between packages of nodma is an arrow of the table, and every arrow is used.

    ``externals`` are lines of the same form the other way round: a package from outside, and the only modules of
    nodma that may import it.
    """

    type_name = "arrows"

    arrows = fields.ListField(subfield=fields.StringField())
    externals = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002 - import-linter's signature
        """Compare the imports there are with the table."""
        arrows = parse([str(line) for line in self.arrows])  # type: ignore[attr-defined]
        externals = parse([str(line) for line in self.externals])  # type: ignore[attr-defined]
        wrong = [*_forbidden(graph, arrows), *_unused(graph, arrows), *_externals(graph, externals)]
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print what is wrong."""
        for line in check.metadata["wrong"]:
            output.print_error(line)


def _imports(graph: ImportGraph) -> Iterator[tuple[str, str]]:
    for importer in graph.modules:
        if _top(importer):
            for imported in graph.find_modules_directly_imported_by(importer):
                yield importer, imported


def _top(module: str) -> str:
    """Return the package, or module at the top, that a module belongs to; "" if it is not nodma's."""
    first, _, rest = module.partition(".")
    return (rest.partition(".")[0] or "__init__") if first == ROOT else ""


def _forbidden(graph: ImportGraph, arrows: Arrows) -> Iterator[str]:
    for importer, imported in sorted(_imports(graph)):
        here, there = _top(importer), _top(imported)
        if there and here != there and there not in arrows.get(here, ()):
            yield f"{importer} imports {imported}: {here} may import {', '.join(arrows.get(here, ())) or 'nothing'}"


def _unused(graph: ImportGraph, arrows: Arrows) -> Iterator[str]:
    used = {(_top(importer), _top(imported)) for importer, imported in _imports(graph)}
    for here, allowed in arrows.items():
        for there in allowed:
            if (here, there) not in used:
                yield f"{here} does not import {there}: take the arrow away"


def _externals(graph: ImportGraph, externals: Arrows) -> Iterator[str]:
    for importer, imported in sorted(_imports(graph)):
        if imported in externals and importer not in externals[imported]:
            yield f"{importer} imports {imported}: only {', '.join(externals[imported])} may"


def ranks(arrows: Arrows) -> list[list[str]]:
    """Return the packages by height: each imports only what stands below. Raises ValueError for a circle."""
    heights: dict[str, int] = {}

    def height(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            raise ValueError(f"a circle of imports: {' -> '.join([*above, name])}")
        if name not in heights:
            heights[name] = 1 + max((height(one, (*above, name)) for one in arrows.get(name, ())), default=-1)
        return heights[name]

    for name in arrows:
        height(name, ())
    rows: list[list[str]] = [[] for _ in range(max(heights.values()) + 1)]
    for name, row in heights.items():
        rows[row].append(name)
    return [sorted(row) for row in reversed(rows)]


def picture(arrows: Arrows) -> str:
    """Return the table as a picture in Markdown: the highest package first, beside each what it may import."""
    width = max(map(len, arrows))
    lines = ["```text"]
    inner = {
        name: tuple(one for one in to if one not in _AT_THE_TOP)
        for name, to in arrows.items()
        if name not in _AT_THE_TOP
    }
    for row in ranks(inner):
        lines += [f"{name:{width}} ──► {'  '.join(inner[name])}" if inner[name] else name for name in row]
        lines.append("")
    lines[-1] = "```"
    return "\n".join(lines) + "\n"


def written(page: str, arrows: Arrows) -> str:
    """Return the page with the picture of ``arrows`` in its place."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no place for the picture: put it between {BEGIN.strip()!r} and {END.strip()!r}")
    return before + begin + picture(arrows) + end + after


def main() -> None:
    """Write the picture into the page."""
    PAGE.write_text(written(PAGE.read_text(), read_table()))


if __name__ == "__main__":
    main()
