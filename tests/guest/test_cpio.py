"""Archives: what is written is read back by an independent reading of the format."""

from __future__ import annotations

import io
import stat
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nodma.guest.cpio import Archive, Tree

HEADER = 110
NAMES = st.text("abcdefgh.-_", min_size=1, max_size=9).filter(lambda name: name.strip("."))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


def entries(data: bytes) -> list[tuple[str, int, bytes]]:
    """Name, mode and contents of each entry (the format: Documentation/driver-api/early-userspace/buffer-format)."""
    found, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + HEADER : at + HEADER + name_size - 1].decode()
        body = (at + HEADER + name_size + 3) & ~3
        at = (body + size + 3) & ~3
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        found.append((name, mode, data[body : body + size]))


@given(st.dictionaries(PATHS, st.tuples(st.binary(max_size=50), st.booleans()), max_size=8))
def test_files_are_read_back_with_their_directories_before_them(files: dict[str, tuple[bytes, bool]]) -> None:
    def clashes(path: str) -> bool:
        return any(other != path and other.startswith(f"{path}/") for other in files)

    files = {path: value for path, value in files.items() if not clashes(path)}
    buffer = io.BytesIO()
    archive = Archive(buffer)
    for path, (content, executable) in files.items():
        archive.add(path, content, executable=executable)
    archive.close()
    seen: set[str] = {"."}
    regular = {}
    for name, mode, content in entries(buffer.getvalue()):
        assert name not in seen, "each once"
        assert str(Path(name).parent) in seen
        if stat.S_ISDIR(mode):
            assert stat.S_IMODE(mode) == 0o755
        else:
            regular[name] = (content, bool(mode & 0o111))
        seen.add(name)
    assert regular == files


def test_links_and_files_from_disk(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"from disk")
    buffer = io.BytesIO()
    archive = Archive(buffer)
    archive.add("usr/file", tmp_path / "source")
    archive.link("bin", "usr/bin")
    archive.close()
    found = {name: (mode, content) for name, mode, content in entries(buffer.getvalue())}
    assert found["usr/file"] == (stat.S_IFREG | 0o644, b"from disk")
    assert found["bin"] == (stat.S_IFLNK | 0o777, b"usr/bin")


def test_a_tree_has_the_same(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.add("a/b/run", b"#!/bin/sh\n", executable=True)
    tree.link("lib64", "usr/lib64")
    tree.link("lib64", "usr/lib64")
    tree.directory("proc")
    assert (tmp_path / "a/b/run").stat().st_mode & 0o111
    assert str((tmp_path / "lib64").readlink()) == "usr/lib64"
    assert (tmp_path / "proc").is_dir()
