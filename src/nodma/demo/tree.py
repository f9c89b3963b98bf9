"""A real directory tree to put on a disk: this project's own files, and more until there is enough."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nodma

_SIZES: Final = (700, 3_000, 12_000, 50_000, 200_000)
_PER_DIRECTORY: Final = 100
_GENERATED: Final = "generated"
_LEAST_GENERATED: Final = 20
"""However many files the project has by itself, as many are there to be overwritten."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree under ``root``: the SHA-256 of each file by its path from there."""

    root: Path
    digests: dict[str, str]
    bytes: int

    @property
    def rewritable(self) -> list[str]:
        """The files whose contents mean nothing, every other one of them."""
        return [path for path in sorted(self.digests) if path.startswith(f"{_GENERATED}/")][::2]


def make_tree(root: Path, files: int, progress: Callable[[int], None]) -> Tree:
    """Fill ``root`` until there are ``files`` files; ``progress`` is called with their number."""
    root.mkdir()
    package = Path(nodma.__file__).parent
    shutil.copytree(package, root / "nodma", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.c"))
    docs = package.parents[1] / "docs"
    if docs.is_dir():
        shutil.copytree(docs, root / "docs")
    have = sum(1 for path in root.rglob("*") if path.is_file())
    source = random.Random(20250402)  # noqa: S311 - contents that are the same each time
    for number in range(max(_LEAST_GENERATED, files - have)):
        directory = root / _GENERATED / f"{number // _PER_DIRECTORY:03}"
        directory.mkdir(parents=True, exist_ok=True)
        size = _SIZES[number % len(_SIZES)] + source.randrange(500)
        (directory / f"{number:05}.bin").write_bytes(source.randbytes(size))
        progress(have + number + 1)
    digests = digest_tree(root)
    return Tree(root, digests, sum((root / path).stat().st_size for path in digests))


def digest_tree(root: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below ``root``, by its path from there."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "lost+found" not in path.parts
    }
