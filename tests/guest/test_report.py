"""What a report says of a host, and what it must not say."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from nodma.guest import report

LISTED = """\
PAT memtype list:
PAT: [mem 0x000000007ffe0000-0x000000007ffe2000] write-back
PAT: [mem 0x0000000100000000-0x0000000101000000] uncached-minus
PAT: [mem 0x00000001fe000000-0x00000001fe001000] uncached-minus
"""


@pytest.mark.parametrize(
    ("begin", "size", "found"),
    [(0x1_0000_0000, 1 << 24, 1), (0x1_00FF_F000, 0x1000, 1), (0x2_0000_0000, 0x1000, 0), (0xF000_0000, 0x1000, 0)],
)
def test_memory_types_of_a_range(begin: int, size: int, found: int) -> None:
    assert len(report.memory_types(LISTED, begin, begin + size)) == found


def test_host_facts_can_be_posted_as_json() -> None:
    facts = json.loads(json.dumps(report.host_facts()))
    assert facts["processor"] or facts["architecture"] != "x86_64"
    assert facts["processors"] >= 1
    assert {*facts["flags"]} <= report._FLAGS


def test_neither_host_nor_directories_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "venus")
    told = {
        "log": ["venus login:", "from /home/ada/disk.img", "/home/adah/x", "/home/ada", "venus.example venusian"],
        "deep": [{"a": "/tmp/work-1/disk.sock is gone"}, 3, None, True],
    }
    assert report.without_names(told, [Path("/tmp/work-1"), Path("/home/ada"), Path("/")]) == {
        "log": ["<host> login:", "from <directory>/disk.img", "/home/adah/x", "<directory>", "<host>.example venusian"],
        "deep": [{"a": "<directory>/disk.sock is gone"}, 3, None, True],
    }


def test_a_host_called_localhost_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert report.without_names("localhost", []) == "localhost"
