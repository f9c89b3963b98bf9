"""What a report says of a host, and what it must not say."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from nodma.errors import GuestError
from nodma.guest import Kernel, Outcome, Qemu, Tools, report

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


def fio(**ways: dict[str, float | dict[str, float]]) -> bytes:
    return json.dumps({"jobs": [{"error": 0, **ways}]}).encode()


def outcome(**more: bytes) -> Outcome:
    bars = ["0x00000000fe000000 0x00000000fe000fff 0x0000000000040200", "0x0 0x0 0x0"]
    bars.append("0x0000000100000000 0x0000000100ffffff 0x000000000014220c")
    log = [
        "Command line: x",
        "MTRR map: 4 entries",
        "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP",
        "nodma: so",
    ]
    rate = {"iops": 1234.56, "bw_bytes": 5056757, "clat_ns": {"mean": 98765.4}}
    files = {
        "resource": "\n".join(bars).encode(),
        "memory_types": LISTED.encode(),
        "mtrr": b"",
        "flags": b"flags\t\t: fpu sev_snp avx512f pat",
        "log": "\n".join(log).encode(),
        "counters/maps": b"17\n",
        "read1.json": fio(read=rate),
        "read32.json": fio(read=rate),
        "write32.json": fio(write=rate),
        "stream.json": fio(read=rate),
    }
    return Outcome(0, files | more, "", 1.0)


def test_facts_of_a_guest() -> None:
    facts = report._guest_facts(outcome())
    assert facts["window"] == {"begin": "0x100000000", "bytes": 16 << 20}
    assert facts["memory_types"] == ["PAT: [mem 0x0000000100000000-0x0000000101000000] uncached-minus"]
    assert facts["flags"] == ["pat", "sev_snp"]
    assert facts["encryption"] == ["Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP"]
    assert facts["module"] == ["nodma: so"]
    assert facts["counters"] == {"maps": 17}


def test_rates_of_a_guest() -> None:
    rates = report._bench(outcome())
    assert [*rates] == ["read1", "read32", "write32", "stream"]
    assert rates["write32"] == {"requests_per_second": 1234.6, "bytes_per_second": 5056757, "microseconds": 98.8}


def test_a_run_that_failed_is_not_reported_as_a_rate() -> None:
    with pytest.raises(GuestError, match="read32"):
        report._bench(outcome(**{"read32.json": json.dumps({"jobs": [{"error": 5}]}).encode()}))


def test_what_fails_is_noted_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: object, **__: object) -> None:
        raise GuestError(f"the guest did not end; the log is {tmp_path}/console.log")

    monkeypatch.setattr(report, "_run_guest", lambda *_: outcome())
    monkeypatch.setattr(report, "prove", fails)
    tools = Tools(Qemu(("qemu",), "nowhere"), tmp_path / "kit", tmp_path / "busybox")
    kernel = Kernel("6.12", "6.12.0", tmp_path / "vmlinuz")
    made = report.make_report(tools, kernel, tmp_path / "work", accelerator="tcg")
    assert made["errors"] == [f"proof: the guest did not end; the log is {tmp_path}/console.log"]
    assert "proof" not in made
    assert made["bench"]["read1"]["requests_per_second"] == 1234.6
