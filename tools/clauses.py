"""Which code holds a clause of restricted DMA, and which test shows that: from the citations in both.

Code and tests cite a clause by its id (``SW-D2``) in a docstring, a comment or a message. `python -m tools.clauses`
writes docs/clauses.md from these; a test holds that page current, and each clause to have both.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from nodma.spec.profiles import CLAUSES

PAGE: Final = Path("docs/clauses.md")
_DECLARED_IN: Final = Path("src/nodma/spec/profiles.py")
"""Where the clauses themselves are: what it cites outside functions holds nothing."""
_CITATION: Final = re.compile(r"\b(?:SW|DMB)-[A-Z]\d+\b|\bSHARE\b")
_C_FUNCTION: Final = re.compile(r"^(?=[a-z]).*?\b(\w+)\(")
_HEAD: Final = """\
# The clauses, and what holds them

This page lists the clauses of restricted DMA ([the wire format](wire-format.md)), by the ids that code and tests cite.
`make clauses` makes it from those citations.
"""

Places = Mapping[str, tuple[str, ...]]
"""By clause, where it is cited: a file, and the function or class in it."""


def cited(root: Path, files: Iterator[Path]) -> Places:
    """Return where the files below ``root`` cite clauses, in the files' order."""
    found: dict[str, dict[str, None]] = {}
    for path in files:
        text = path.read_text()
        if not _CITATION.search(text):
            continue
        owners = _python_owners(text) if path.suffix == ".py" else _c_owners(text)
        for number, line in enumerate(text.splitlines(), 1):
            for clause in _CITATION.findall(line):
                owner = owners.get(number, "")
                if not owner and path.relative_to(root) == _DECLARED_IN:
                    continue
                place = f"`{path.relative_to(root)}`" + (f" {owner}" if owner else "")
                found.setdefault(clause, {})[place] = None
    return {clause: tuple(places) for clause, places in found.items()}


def in_code(root: Path) -> Places:
    """Return the citations of the code."""
    suffixes = ("py", "pxd", "c", "h")
    return cited(root, (path for suffix in suffixes for path in sorted((root / "src").rglob(f"*.{suffix}"))))


def in_tests(root: Path) -> Places:
    """Return the citations of the tests."""
    return cited(root, (path for path in sorted((root / "tests").rglob("*.py")) if path.parent.name != "tools"))


def _python_owners(text: str) -> dict[int, str]:
    """Return, by line, the innermost function or class that it is in."""
    owners: dict[int, str] = {}

    def enter(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inner = f"{name}.{child.name}" if name else child.name
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                owners.update(dict.fromkeys(range(first, (child.end_lineno or first) + 1), inner))
                enter(child, inner)

    enter(ast.parse(text), "")
    return owners


def _c_owners(text: str) -> dict[int, str]:
    """Return, by line, the function whose body it is in; of a file in the kernel's style."""
    owners: dict[int, str] = {}
    name, inside = "", False
    for number, line in enumerate(text.splitlines(), 1):
        if not inside and (match := _C_FUNCTION.match(line)):
            name = match[1]
        inside = (inside or line.startswith("{")) and not line.startswith("}")
        if inside:
            owners[number] = name
    return owners


def page(root: Path) -> str:
    """Return the page."""
    code, tests = in_code(root), in_tests(root)
    lines = [_HEAD]
    for clause, statement in CLAUSES.items():
        lines += [f"## {clause}", "", f"{statement[0].upper()}{statement[1:]}.", ""]
        for title, places in (("code", code), ("tests", tests)):
            lines += [f"{title}:", "", *(f"- {place}" for place in places.get(clause, ("none",))), ""]
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(Path()))


if __name__ == "__main__":
    main()
