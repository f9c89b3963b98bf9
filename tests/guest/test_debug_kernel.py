"""What counts as a report of a kernel, and which debug kernel is the kit's."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodma.errors import GuestError, Unavailable
from nodma.guest import debug_kernel
from nodma.guest.command import run_long

REPORTS = [
    "[    9.1] BUG: KASAN: slab-use-after-free in look+0x1c/0x2a0 [nodma]",
    "[    9.1] BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585",
    "[    9.1] kernel BUG at drivers/virtio/virtio_ring.c:773!",
    "[    9.1] WARNING: CPU: 0 PID: 61 at /build/pool.c:229 nodma_pool_unmap+0x1c/0x2a0 [nodma]",
    "[    9.1] WARNING: possible recursive locking detected",
    "[    9.1] WARNING: possible circular locking dependency detected",
    "[    9.1] WARNING: suspicious RCU usage",
    "[    9.1] DMA-API: virtio-pci 0000:00:05.0: device driver has pending DMA allocations while released from device",
    "[    9.1] ODEBUG: free active (active state 0) object: ffff888 object type: timer_list hint: delayed_work",
    "[    9.1] UBSAN: array-index-out-of-bounds in /build/region.c:93:5",
    "[    9.1] INFO: task rmmod:88 blocked for more than 60 seconds.",
    "[    9.1] rcu: INFO: rcu_preempt self-detected stall on CPU",
    "[    9.1] Oops: general protection fault, probably for address 0xdffffc: 0000 [#1] SMP KASAN",
    "[    9.1] refcount_t: underflow; use-after-free.",
    "[    9.1] list_add corruption. prev->next should be next (ffff), but was ffff. (prev=ffff).",
    "[    9.1] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    "[    9.1] watchdog: BUG: soft lockup - CPU#0 stuck for 134s! [dd:77]",
]

ORDINARY = [
    "[    0.1] kasan: KernelAddressSanitizer initialized",
    "[    0.1] DMA-API: preallocated 65536 debug entries",
    "[    0.1] DMA-API: debugging enabled by kernel config",
    "[    0.1] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
    "[    0.1] ODEBUG: selftest passed",
    "[    0.1] rcu: \tRCU lockdep checking is enabled.",
    "[    9.1] virtio_blk virtio0: nodma: bounces through 16384 KiB of BAR 2 at 0xc0000000, profile swiotlb",
    "[    9.1] virtio_blk virtio0: nodma: the device answers with ones only, it is gone: given up, 3 requests ended",
    "[    9.1] Buffer I/O error on dev vda, logical block 4, async page read",
]


@pytest.mark.parametrize("line", REPORTS)
def test_a_report_is_one(line: str) -> None:
    assert debug_kernel.reports(f"before\n{line}\nafter\n") == [line]


def test_what_every_boot_says_is_none() -> None:
    assert debug_kernel.reports("\n".join(ORDINARY)) == []


def test_a_kit_without_one_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"nodma guest setup --debug-kernel"):
        debug_kernel.find(tmp_path)


def test_it_is_found_where_it_was_built_and_not_for_another_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = debug_kernel._place(tmp_path)
    built.mkdir()
    (built / "release").write_text("6.12.117-debug\n")
    kernel = debug_kernel.find(tmp_path)
    assert (kernel.name, kernel.release, kernel.image) == ("debug", "6.12.117-debug", built / "vmlinuz")
    assert kernel.slowness > 1
    other = tmp_path / "other.config"
    other.write_text("CONFIG_SMP=y\n")
    monkeypatch.setattr(debug_kernel, "CONFIG", other)
    with pytest.raises(Unavailable):
        debug_kernel.find(tmp_path)


def test_removing_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    for name in ("debug-0123", "debug-4567.partial", "root"):
        (tmp_path / name / "below").mkdir(parents=True)
    debug_kernel.remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_each_line_of_a_long_command_is_seen_and_kept(tmp_path: Path) -> None:
    seen: list[str] = []
    log = tmp_path / "log"
    run_long(["sh", "-c", "echo one; echo two >&2"], "counting", log=log, seconds=30, on_line=seen.append)
    assert seen == ["one\n", "two\n"]
    assert log.read_text() == "one\ntwo\n"


def test_a_long_command_that_fails_says_what_it_said_last(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"(?s)counting failed with status 3; .*log.*the reason"):
        run_long(
            ["sh", "-c", "echo the reason; exit 3"],
            "counting",
            log=tmp_path / "log",
            seconds=30,
            on_line=lambda _: None,
        )


def test_a_long_command_ends_when_its_time_is_over_and_its_children_too(tmp_path: Path) -> None:
    """The child holds the pipe open: were it left alone, this would take its 100 s."""
    with pytest.raises(GuestError, match="counting took longer than"):
        run_long(
            ["sh", "-c", "sleep 100 & wait"], "counting", log=tmp_path / "log", seconds=0.3, on_line=lambda _: None
        )


def test_a_long_command_ends_with_the_one_who_watches_it(tmp_path: Path) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_long(
            ["sh", "-c", "echo; sleep 100 & wait"], "counting", log=tmp_path / "log", seconds=60, on_line=interrupted
        )
