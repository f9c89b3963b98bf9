"""The arrows of the house: each forbidden one is refused, each allowed one is used, and the page shows them."""

from __future__ import annotations

from itertools import permutations
from typing import Final

import grimp
import pytest

from tools.arrows import PAGE, ArrowsContract, parse, ranks, read_table, written

ARROWS: Final = read_table()
FORBIDDEN: Final = [pair for pair in permutations(ARROWS, 2) if pair[1] not in ARROWS[pair[0]]]
MODULES: Final = {"__init__": "nodma"}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("nodma", include_external_packages=True)


def contract() -> ArrowsContract:
    lines = [f"{name}: {' '.join(to)}" for name, to in ARROWS.items()]
    return ArrowsContract("Arrows", {}, {"arrows": lines, "externals": ["mmap: nodma.window.window"]})


def module(package: str) -> str:
    return MODULES.get(package, f"nodma.{package}")


def broken_by(graph: grimp.ImportGraph, importer: str, imported: str) -> list[str]:
    """Return what the contract says of a probe: one more import."""
    if importer not in graph.modules:
        graph.add_module(importer)
    assert not graph.direct_import_exists(importer=importer, imported=imported)
    graph.add_import(importer=importer, imported=imported)
    try:
        wrong: list[str] = contract().check(graph, verbose=False).metadata["wrong"]
    finally:
        graph.remove_import(importer=importer, imported=imported)
    return wrong


def test_the_house_keeps_its_arrows(graph: grimp.ImportGraph) -> None:
    assert contract().check(graph, verbose=False).metadata["wrong"] == []


@pytest.mark.parametrize(("importer", "imported"), FORBIDDEN, ids=lambda name: name)
def test_each_forbidden_arrow_is_refused(graph: grimp.ImportGraph, importer: str, imported: str) -> None:
    probe = module(importer) if importer in MODULES else f"nodma.{importer}.probe"
    (said,) = broken_by(graph, probe, module(imported))
    assert said.startswith(f"{probe} imports {module(imported)}: {importer} may import")


def test_only_the_window_may_map_memory(graph: grimp.ImportGraph) -> None:
    for package in ARROWS:
        probe = module(package) if package in MODULES else f"nodma.{package}.probe"
        (said,) = broken_by(graph, probe, "mmap")
        assert said == f"{probe} imports mmap: only nodma.window.window may"
    (said,) = broken_by(graph, "nodma.window.pool", "mmap")
    assert "only nodma.window.window may" in said


def test_an_arrow_that_nobody_uses_is_refused(graph: grimp.ImportGraph) -> None:
    unused = ArrowsContract(
        "Arrows", {}, {"arrows": ["units: errors spec"], "externals": ["mmap: nodma.window.window"]}
    )
    assert "units does not import spec: take the arrow away" in unused.check(graph, verbose=False).metadata["wrong"]


def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text()
    assert written(page, ARROWS) == page, "run `python -m tools.arrows`"


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="a circle of imports: a -> b -> a"):
        ranks(parse(["a: b", "b: a"]))
