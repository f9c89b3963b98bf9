"""The README shows what the demo prints."""

from __future__ import annotations

from tools.readme_demo import run_demo, shown, without_figures


def test_the_readme_shows_what_the_demo_prints() -> None:
    """Up to figures and line breaks; `python -m tools.readme_demo` rewrites it."""
    assert without_figures(run_demo()) == without_figures(shown())


def test_only_figures_may_differ() -> None:
    assert without_figures("open  6 x pipe, 1,234.5 MB, ring compiled") == without_figures(
        "open 12 x pipe,\n 7 MB, ring interpreted"
    )
    assert without_figures("open 2 x pipe") != without_figures("open 2 x socket")
