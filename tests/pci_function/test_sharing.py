"""One window for several functions, on the devices' end: where a sharer finds it, and what it does when it does not."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nodma.errors import Disconnected, NodmaError, UsageError
from nodma.pci import ConfigSpace
from nodma.pci_function import PoolKeeper, RemoteKeeper, SharedPoolConfig, shared_window
from nodma.pci_function.shared_window import SharedWindow
from nodma.ring import RingLayout
from nodma.spec.profiles import DMB, SELF
from nodma.spec.slot_protocol import KeeperCommand, KeeperReply, KeeperRequest, KeeperStatus
from nodma.spec.vfio_user import Region
from nodma.spec.virtio import Status
from nodma.spec.virtio_pci import CfgType, CommonCfg
from nodma.window import Window

POOL = 1 << 20
BASE, ELSEWHERE = 0x10_0000_0000, 0x20_0000_0000
LAYOUT = RingLayout.packed_at(0x4000, 16)


@pytest.fixture
def keeper() -> Iterator[PoolKeeper]:
    made = PoolKeeper(POOL)
    yield made
    made.close()


@pytest.fixture
def owner(make_disk: Callable[..., Any], keeper: PoolKeeper) -> Any:
    return make_disk(share=SharedPoolConfig(keeper))


@pytest.fixture
def sharer(make_disk: Callable[..., Any], keeper: PoolKeeper, owner: Any) -> Any:
    disk = make_disk(LAYOUT, share=SharedPoolConfig(keeper, owner=0))
    disk.lender = owner.function
    return disk


def told(disk: Any, *addresses: int) -> Any:
    """The VMM has told of regions that could be the owner's BAR."""
    for address in addresses:
        disk.function.dma_mapped(address, POOL)
    return disk


def region(disk: Any) -> Any:
    space = ConfigSpace.parse(disk.function.read(Region.CONFIG, 0, 4096))
    assert space.sizes_known is False
    found = space.virtio(CfgType.SWIOTLB)
    assert found
    return found, space


def reads(disk: Any, base: int = BASE) -> bool:
    disk.offer_read(base)
    disk.work()
    done = disk.ring.reap(1) == [("read", 513)]
    assert not done or disk.answer == (4).to_bytes(4, "little")
    return done


def test_an_owner_says_that_its_region_may_be_shared(owner: Any) -> None:
    found, _ = region(owner)
    assert (len(found.raw), found.owner) == (20, (SELF, SELF))
    owner.start()
    assert reads(owner)


def test_a_sharer_names_the_owner_and_has_no_window_bar(sharer: Any) -> None:
    found, space = region(sharer)
    assert (len(found.raw), found.owner) == (20, (SELF, 0))
    assert (found.bar, found.offset_in_bar, found.length) == (2, 0, POOL)
    assert [bar.index for bar in space.bars] in ([], [0])
    assert 2 not in sharer.function.regions


def test_both_work_in_one_window(owner: Any, sharer: Any) -> None:
    owner.start()
    told(sharer, BASE).start()
    owner.function.window.view(0xF000, 4)[:] = b"mine"
    assert sharer.function.window.view(0xF000, 4).tobytes() == b"mine"
    assert reads(owner)
    assert reads(sharer)


@pytest.mark.parametrize("regions", [(), (ELSEWHERE,), (ELSEWHERE, ELSEWHERE + POOL)])
def test_a_queue_that_no_region_holds_is_refused_with_a_reason(sharer: Any, regions: tuple[int, ...]) -> None:
    told(sharer, *regions)
    sharer.registers.negotiate()
    sharer.registers.enable(LAYOUT, BASE)
    assert sharer.registers.status & Status.DEVICE_NEEDS_RESET
    assert f"of the {len(regions)} regions of 0x100000 bytes reported by the VMM" in sharer.core.reason
    assert "the BAR of function 0" in sharer.core.reason
    assert sharer.registers.get(CommonCfg.queue_enable) == 0


def test_of_several_regions_the_one_with_the_queue_is_the_owners(sharer: Any) -> None:
    told(sharer, ELSEWHERE, BASE, ELSEWHERE + POOL).start()
    assert reads(sharer)


def test_requests_wait_while_the_owners_bar_is_gone_and_follow_it(sharer: Any) -> None:
    told(sharer, BASE).start()
    sharer.function.dma_unmapped({BASE: POOL})
    assert not reads(sharer)
    told(sharer, BASE)
    sharer.work()
    assert sharer.ring.reap(1) == [("read", 513)]
    sharer.function.dma_unmapped({BASE: POOL})
    told(sharer, ELSEWHERE)
    assert reads(sharer, ELSEWHERE)
    assert not reads(sharer, BASE)  # where it was
    assert "is outside the window" in sharer.core.reason


def test_where_it_went_is_not_guessed(sharer: Any) -> None:
    told(sharer, BASE).start()
    sharer.function.dma_unmapped({BASE: POOL})
    told(sharer, ELSEWHERE, ELSEWHERE + POOL)
    assert sharer.registers.status & Status.DEVICE_NEEDS_RESET
    assert "the BAR of function 0 moved, and 2 regions could be it now" in sharer.core.reason


def test_a_sharers_own_decoding_is_none_of_its_windows_business(sharer: Any) -> None:
    told(sharer, BASE).start()
    sharer.registers.place(0, command=0)
    assert reads(sharer)


def test_the_owners_client_takes_the_window_along_and_the_sharers_does_not(owner: Any, sharer: Any) -> None:
    told(sharer, BASE).start()
    owner.function.window.view(0, 6)[:] = b"secret"
    sharer.function.detach()
    assert owner.function.window.view(0, 6).tobytes() == sharer.function.window.view(0, 6).tobytes() == b"secret"
    told(sharer, BASE).start()
    owner.function.detach()
    assert owner.function.window.view(0, 6).tobytes() == bytes(6)
    sharer.lender = sharer.function
    assert reads(sharer)  # nothing of what it had is lost
    sharer.function.detach()
    assert sharer.function.window.view(0, 6).tobytes() == bytes(6)
    assert os.fstat(sharer.function.window.fd).st_ino == os.fstat(owner.function.window.fd).st_ino


def test_an_owner_with_another_window_is_not_taken_for_the_one_before(owner: Any, sharer: Any) -> None:
    told(sharer, BASE).start()
    sharer.function.dma_unmapped({BASE: POOL})
    owner.function.detach()
    told(sharer, BASE)  # another client of the owner's put its BAR there
    assert "function 0 now has a different window" in sharer.core.reason
    sharer.registers.set(CommonCfg.device_status, 0)
    sharer.start()  # the driver sets it up anew, in the window there is now
    assert reads(sharer)


def test_after_a_reset_the_next_queue_says_where_the_window_is(sharer: Any) -> None:
    told(sharer, BASE, ELSEWHERE).start()
    sharer.registers.set(CommonCfg.device_status, 0)
    sharer.start(ELSEWHERE)
    assert reads(sharer, ELSEWHERE)


def test_dmb_cannot_share(make_disk: Callable[..., Any], keeper: PoolKeeper) -> None:
    with pytest.raises(UsageError, match=r"the profile dmb cannot share a pool.*DMB-V2"):
        make_disk(profile=DMB, share=SharedPoolConfig(keeper))


@pytest.fixture
def remote(keeper: PoolKeeper) -> Iterator[RemoteKeeper]:
    """The keeper, asked through a socket."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def answer() -> None:
        while keeper.answer(there, owner=True):
            pass

    thread = threading.Thread(target=answer)
    thread.start()
    with here, there:
        yield RemoteKeeper(here)
        here.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=30)


def test_a_keeper_in_another_process_hands_out_the_one_descriptor(keeper: PoolKeeper, remote: RemoteKeeper) -> None:
    near, far = SharedWindow(keeper, POOL, owner=True), SharedWindow(remote, POOL, owner=False)
    near.window.view(0, 4)[:] = b"same"
    assert far.window.view(0, 4).tobytes() == b"same"
    assert not far.stale
    assert not far.refresh()
    near.renew()
    assert far.stale
    assert far.window.view(0, 4).tobytes() == b"same"
    far.renew()
    near.window.view(8, 4)[:] = b"new."
    assert far.window.view(0, 12).tobytes() == bytes(8) + b"new."
    near.close()
    far.close()


def test_only_the_owner_has_the_window_renewed(keeper: PoolKeeper) -> None:
    """Another function's client, however hostile, takes no pool away from under its neighbours."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine = SharedWindow(keeper, POOL, owner=True)
    mine.window.view(0, 4)[:] = b"mine"
    answered = threading.Thread(target=keeper.answer, args=(there,), kwargs={"owner": False})
    answered.start()
    with here, there:
        with contextlib.suppress(NodmaError):  # it may well be told so
            RemoteKeeper(here).renew()
        answered.join(timeout=30)
    assert not mine.stale
    assert not mine.refresh()
    assert mine.window.view(0, 4).tobytes() == b"mine"
    mine.renew()
    assert mine.window.view(0, 4).tobytes() == bytes(4)
    mine.close()


def test_windows_come_and_go_without_a_descriptor_left(
    keeper: PoolKeeper, remote: RemoteKeeper, count_descriptors: Callable[[], int]
) -> None:
    owner = SharedWindow(remote, POOL, owner=True)
    sharer = SharedWindow(keeper, POOL, owner=False)
    remote.lend(keeper.generation)  # what was asked before is answered, and closed
    before = count_descriptors()
    for _ in range(5):
        owner.renew()
        assert sharer.stale
        assert sharer.refresh()
        assert not sharer.stale
    remote.lend(keeper.generation)
    assert count_descriptors() == before
    owner.close()
    sharer.close()


def test_a_keeper_that_is_gone_is_an_error_and_not_a_hang() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper = RemoteKeeper(here)
    there.close()
    with pytest.raises(Disconnected, match="the keeper of the shared pool"):
        keeper.lend(0)
    here.close()


def test_a_sharer_whose_keeper_is_gone_says_so(make_disk: Callable[..., Any], keeper: PoolKeeper) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asked = threading.Thread(target=keeper.answer, args=(there,), kwargs={"owner": False})
    asked.start()
    disk = make_disk(LAYOUT, share=SharedPoolConfig(RemoteKeeper(here), owner=3))
    asked.join(timeout=30)
    there.close()
    told(disk, BASE)
    disk.registers.negotiate()
    disk.registers.enable(LAYOUT, BASE)
    assert "the keeper of the shared pool" in disk.core.reason
    here.close()


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A function's end of the keeper's socket, and the keeper's."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    there.setblocking(False)
    here.settimeout(30)
    with here, there:
        yield here, there


@pytest.mark.parametrize(
    ("packet", "owner", "status"),
    [
        (bytes(KeeperRequest.new(command=KeeperCommand.LEND, id=7)), False, KeeperStatus.OK),
        (bytes(KeeperRequest.new(command=KeeperCommand.RENEW, id=7)), True, KeeperStatus.OK),
        (bytes(KeeperRequest.new(command=KeeperCommand.RENEW, id=7)), False, KeeperStatus.NOT_OWNER),
        (bytes(KeeperRequest.new(command=3, id=7)), True, KeeperStatus.BAD_COMMAND),
        (bytes(KeeperRequest.new(command=KeeperCommand.RENEW, id=7, version=2)), True, KeeperStatus.BAD_VERSION),
    ],
)
def test_the_keeper_answers_each_request_with_its_id(
    keeper: PoolKeeper, channel: tuple[socket.socket, socket.socket], packet: bytes, owner: bool, status: KeeperStatus
) -> None:
    here, there = channel
    before = keeper.generation
    here.send(packet)
    assert keeper.answer(there, owner=owner)
    answer, fds, _, _ = socket.recv_fds(here, 99, 9)
    reply = KeeperReply(answer)
    assert (len(answer), reply.version, reply.status, reply.id) == (16, 1, status, 7)
    assert len(fds) == (status == KeeperStatus.OK)
    assert (keeper.generation != before) == (status == KeeperStatus.OK and owner)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("packet", [b"x", bytes(15), bytes(17), bytes(9999)])
def test_a_packet_of_another_size_is_no_command(
    keeper: PoolKeeper, channel: tuple[socket.socket, socket.socket], packet: bytes
) -> None:
    here, there = channel
    here.send(packet)
    assert keeper.answer(there, owner=True)
    assert KeeperReply(here.recv(99)).status == KeeperStatus.BAD_COMMAND
    here.shutdown(socket.SHUT_RDWR)
    assert not keeper.answer(there, owner=True)


def test_a_keeper_without_memory_says_so_and_keeps_the_window(
    keeper: PoolKeeper, channel: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = channel
    here.send(bytes(KeeperRequest.new(command=KeeperCommand.RENEW, id=7)))

    def fail(_: int) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Window, "create", fail)
        assert keeper.answer(there, owner=True)
    assert KeeperReply(here.recv(99)).status == KeeperStatus.FAILED
    generation, fd = keeper.lend(0)
    assert generation == keeper.generation
    assert fd is not None
    os.close(fd)


def test_a_late_answer_is_not_taken_for_that_to_another_request(
    keeper: PoolKeeper,
    channel: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    count_descriptors: Callable[[], int],
) -> None:
    here, there = channel
    monkeypatch.setattr(shared_window, "ANSWER_SECONDS", 0.05)
    remote = RemoteKeeper(here)
    before = count_descriptors()
    for _ in range(3):
        with pytest.raises(Disconnected, match=r"the keeper of the shared pool did not answer within 0\.05 s"):
            remote.renew()
    for _ in range(3):
        assert keeper.answer(there, owner=True)
    late = keeper.generation
    monkeypatch.setattr(shared_window, "ANSWER_SECONDS", 30.0)
    here.settimeout(30)
    answering = threading.Thread(target=lambda: answer_soon(keeper, there))
    answering.start()
    generation, fd = remote.lend(0)
    answering.join(30)
    assert generation == late
    assert fd is not None
    os.close(fd)
    assert count_descriptors() == before


def answer_soon(keeper: PoolKeeper, channel: socket.socket) -> None:
    """Answer one request as soon as it comes."""
    select.select([channel], [], [], 30)
    keeper.answer(channel, owner=True)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (
            bytes(KeeperReply.new(id=1, version=2, status=KeeperStatus.BAD_VERSION)),
            "speaks version 2 .* process version 1",
        ),
        (bytes(KeeperReply.new(id=1, status=KeeperStatus.NOT_OWNER)), "refused: NOT_OWNER"),
        (bytes(KeeperReply.new(id=1, status=99)), "refused: status 99"),
        (b"short", "the wrong size"),
    ],
)
def test_a_keeper_that_refuses_is_believed(
    channel: tuple[socket.socket, socket.socket], reply: bytes, why: str
) -> None:
    here, there = channel
    there.send(reply)
    with pytest.raises(Disconnected, match=why):
        RemoteKeeper(here).lend(0)


def test_a_sharer_keeps_its_window_while_the_keeper_is_away(
    channel: tuple[socket.socket, socket.socket], keeper: PoolKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = channel
    answering = threading.Thread(target=lambda: answer_soon(keeper, there))
    answering.start()
    monkeypatch.setattr(shared_window, "ANSWER_SECONDS", 30.0)
    remote = RemoteKeeper(here)
    sharer = SharedWindow(remote, POOL, owner=False)
    answering.join(30)
    here.settimeout(0.05)
    window = sharer.window
    sharer.renew()
    assert sharer.window is window
    owner = SharedWindow(keeper, POOL, owner=True)
    owner._keeper = remote
    with pytest.raises(Disconnected):
        owner.renew()
    sharer.close()
    owner.close()
