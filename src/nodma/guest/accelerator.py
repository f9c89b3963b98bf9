"""KVM where a guest was seen to run with it, emulation elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from nodma.guest.kernel import Kernel
from nodma.guest.tools import Tools

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
ACCELERATORS: Final = ("kvm", "tcg")


def problem_of(accelerator: str, tools: Tools, kernel: Kernel) -> str | None:
    """Return why an accelerator cannot run guests here, None if one did. Tried once, and after each change."""
    key = {
        "boot": _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "",
        "qemu": [*tools.qemu.command, *map(str, tools.qemu.version)],
        "kernel": str(kernel.image),
    }
    path = tools.cache / f"{accelerator}.json"
    try:
        record = json.loads(path.read_text())
        if record["key"] == key:
            problem: str | None = record["problem"]
            return problem
    except (OSError, ValueError, KeyError, TypeError):
        pass
    problem = tools.qemu.accelerator_problem(accelerator, kernel.image)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".partial")
    fresh.write_text(json.dumps({"key": key, "problem": problem}))
    fresh.rename(path)
    return problem


def choose(tools: Tools, kernel: Kernel) -> str:
    """Return ``kvm`` if a guest ran with it here, else ``tcg``."""
    return "tcg" if problem_of("kvm", tools, kernel) else "kvm"
