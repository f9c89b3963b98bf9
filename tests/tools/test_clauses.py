"""Each clause of restricted DMA is held by code and shown by a test, and docs/clauses.md says by which."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodma.spec.profiles import CLAUSES
from tools.clauses import PAGE, in_code, in_tests, page

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("clause", CLAUSES)
def test_a_clause_is_cited_by_code_and_by_a_test(clause: str) -> None:
    assert in_code(ROOT).get(clause), f"no code cites {clause}: cite it where it is held"
    assert in_tests(ROOT).get(clause), f"no test cites {clause}: write one that fails where it is broken"


def test_no_clause_is_cited_that_there_is_not() -> None:
    assert set(in_code(ROOT)) | set(in_tests(ROOT)) <= set(CLAUSES)


def test_the_index_is_current() -> None:
    assert (ROOT / PAGE).read_text() == page(ROOT), "run `make clauses`"


def test_citations_are_found_where_they_stand(tmp_path: Path) -> None:
    """A table made from nothing would be current, too."""
    source, test = tmp_path / "src" / "one.py", tmp_path / "tests" / "test_one.py"
    driver = tmp_path / "src" / "two.c"
    for path in (source, test):
        path.parent.mkdir(exist_ok=True)
    source.write_text(
        'class A:\n    """A (SW-D1)."""\n\n    @property\n    def b(self):\n        return 1  # SW-D2\n\n\nC = "SW-D3"'
    )
    driver.write_text("/* SW-D1 */\nstatic int\nfetch(int a)\n{\n\treturn a; /* DMB-V1 */\n}\n\nint b; /* SHARE */\n")
    test.write_text("def test_it():\n    pass  # SW-D2, SW-D1\n")
    assert in_code(tmp_path) == {
        "SW-D1": ("`src/one.py` A", "`src/two.c`"),
        "SW-D2": ("`src/one.py` A.b",),
        "SW-D3": ("`src/one.py`",),
        "DMB-V1": ("`src/two.c` fetch",),
        "SHARE": ("`src/two.c`",),
    }
    assert in_tests(tmp_path) == {"SW-D2": ("`tests/test_one.py` test_it",), "SW-D1": ("`tests/test_one.py` test_it",)}
