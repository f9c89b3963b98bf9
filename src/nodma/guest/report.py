"""A report of what a host and its guests do with restricted DMA, in one object to post.

It answers what the developers cannot try: how KVM, SEV-SNP, TDX and other processors map a window, and how fast it is
there. It names no host, no user, no path. What cannot be recorded is left out, and said.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from nodma.errors import GuestError, NodmaError
from nodma.guest.job import Job
from nodma.guest.kernel import Kernel
from nodma.guest.machine import Machine, Outcome, Shape
from nodma.guest.prove import prove
from nodma.guest.tools import Tools
from nodma.hosting.process import DeviceProcess

FORMAT: Final = 1
"""Counted up when a key of the report changes its meaning."""

SCRIPT: Final = Path(__file__).parent / "report.sh"
_DISK_BYTES: Final = 256 << 20
_SECONDS: Final = 180.0
_WINDOW_BAR: Final = 2
_BENCHES: Final = ("read1", "read32", "write32", "stream")
_FLAGS: Final = {
    "hypervisor",
    "vmx",
    "svm",
    "ept",
    "npt",
    "sme",
    "sev",
    "sev_es",
    "sev_snp",
    "tdx_guest",
    "tdx_host_platform",
    "erms",
    "fsrm",
    "mtrr",
    "pat",
}
_PARAMETERS: Final = (
    "kvm_amd/parameters/npt",
    "kvm_amd/parameters/sev",
    "kvm_amd/parameters/sev_es",
    "kvm_amd/parameters/sev_snp",
    "kvm_intel/parameters/ept",
    "kvm_intel/parameters/tdx",
)

Progress = Callable[[str], None]


def make_report(
    tools: Tools, kernel: Kernel, work: Path, *, accelerator: str, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Boot two guests, and return the report. ``work`` takes disks and logs.

    A part that fails is named in ``errors``; nothing is raised for it.
    """
    errors: list[str] = []
    report: dict[str, Any] = {
        "host": host_facts() | {"accelerator": accelerator},
        "versions": {
            "nodma": version("nodma"),
            "qemu": ".".join(map(str, tools.qemu.version)),
            "guest_kernel": kernel.release,
        },
    }
    with _noted(errors, "guest and bench"):
        progress("looking at a guest, and timing its disk")
        outcome = _run_guest(tools, kernel, work, accelerator)
        report["guest"] = _guest_facts(outcome)
        report["bench"] = _bench(outcome)
        report["log"] = outcome.file("log").splitlines()
    with _noted(errors, "proof"):
        progress("making the proof")
        found = prove(tools, kernel, work, accelerator=accelerator)
        report["proof"] = {
            "holds": found.holds,
            "checks": [asdict(check) for check in found.checks],
            "counters": found.counters,
        }
    report["errors"] = errors
    cleaned: dict[str, Any] = without_names(report, [work, tools.cache, Path.home()])
    return cleaned


def host_facts() -> dict[str, Any]:
    """Return what matters of this machine: processor, kernel, what of virtualization the kernel offers."""
    cpu = _first_processor()
    return {
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "processor": cpu.get("model name", ""),
        "processors": os.cpu_count(),
        "family_model_stepping": [cpu.get(name, "") for name in ("cpu family", "model", "stepping")],
        "flags": sorted(_FLAGS & {*cpu.get("flags", "").split()}),
        "kvm": Path("/dev/kvm").exists(),
        "devices": [name for name in ("sev", "tdx_guest", "sev-guest") if Path("/dev", name).exists()],
        "modules": {name: text for name in _PARAMETERS if (text := _read(Path("/sys/module", name))) is not None},
    }


def without_names(value: Any, places: list[Path]) -> Any:
    """Return a JSON value whose text names neither this host nor anything below ``places``."""
    host = socket.gethostname()
    names = [
        (re.compile(rf"{re.escape(str(place))}(?=/|\b)"), "<directory>") for place in places if len(place.parts) > 1
    ]
    if host not in ("", "localhost"):
        names.append((re.compile(rf"(?<![\w.-]){re.escape(host)}(?![\w-])"), "<host>"))

    def clean(part: Any) -> Any:
        if isinstance(part, str):
            for pattern, instead in names:
                part = pattern.sub(instead, part)
            return part
        if isinstance(part, dict):
            return {name: clean(content) for name, content in part.items()}
        return [clean(content) for content in part] if isinstance(part, list) else part

    return clean(value)


def memory_types(listed: str, begin: int, end: int) -> list[str]:
    """Return the lines of Linux's ``x86/pat_memtype_list`` that touch a range of addresses."""
    found = []
    for line in listed.splitlines():
        if match := re.search(r"\[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]", line):
            first, last = (int(word, 16) for word in match.groups())
            if first < end and begin <= last:
                found.append(line.strip())
    return found


def _run_guest(tools: Tools, kernel: Kernel, work: Path, accelerator: str) -> Outcome:
    image, path = work / "report.img", work / "report.sock"
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    job = Job(SCRIPT.read_text(), drivers=["nodma", "virtio_blk"], programs=["fio"])
    shape = Shape(accelerator=accelerator)
    with (
        DeviceProcess(image, path),
        Machine(tools, kernel, job, functions=[path], shape=shape, directory=work) as machine,
    ):
        return machine.finish(_SECONDS)


def _guest_facts(outcome: Outcome) -> dict[str, Any]:
    bars = [[int(word, 16) for word in line.split()] for line in outcome.file("resource").splitlines()]
    begin, last, _ = bars[_WINDOW_BAR]
    log = outcome.file("log").splitlines()
    return {
        "window": {"begin": f"{begin:#x}", "bytes": last + 1 - begin},
        "module": [line for line in log if "nodma" in line],
        "memory_types": memory_types(outcome.file("memory_types"), begin, last + 1),
        "mtrr": outcome.file("mtrr").splitlines(),
        "mtrr_log": [line for line in log if re.search(r"MTRR|PAT", line)],
        "encryption": [line for line in log if re.search(r"Memory Encryption|SEV|TDX|tdx:|RME:", line)],
        "flags": sorted(_FLAGS & {*outcome.file("flags").split()}),
        "counters": {
            name.partition("/")[2]: int(value) for name, value in outcome.files.items() if name.startswith("counters/")
        },
    }


def _bench(outcome: Outcome) -> dict[str, dict[str, float]]:
    """Return requests and bytes a second of each of fio's runs, and the mean time of a request in microseconds."""
    found = {}
    for name in _BENCHES:
        (job,) = json.loads(outcome.file(f"{name}.json"))["jobs"]
        if job["error"]:
            raise GuestError(f"fio ended {name} with the error {job['error']}")
        way = job["write" if name.startswith("write") else "read"]
        found[name] = {
            "requests_per_second": round(way["iops"], 1),
            "bytes_per_second": way["bw_bytes"],
            "microseconds": round(way["clat_ns"]["mean"] / 1000, 1),
        }
    return found


def _first_processor() -> dict[str, str]:
    text = (_read(Path("/proc/cpuinfo")) or "").partition("\n\n")[0]
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): content.strip() for name, _, content in pairs}


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


@contextmanager
def _noted(errors: list[str], what: str) -> Iterator[None]:
    """Go on after a failure, and write down what it was."""
    try:
        yield
    except (NodmaError, KeyError, ValueError) as error:
        errors.append(f"{what}: {error}")
