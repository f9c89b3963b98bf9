"""Probing: what a driver checks before it believes a device."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodma.driver import VfioUserBus, VirtioPci, open_disk
from nodma.errors import Disconnected, NegotiationError, NodmaError, ProbeError, ProtocolError
from nodma.pci import ConfigSpace
from nodma.pci_function import PciFunction
from nodma.spec.pci import Type0Header
from nodma.spec.vfio_user import Cmd, Header, Region, Version
from nodma.spec.virtio_pci import CfgType, VirtioPciCap
from nodma.vfio_user import Client


def capability(function: PciFunction, cfg_type: CfgType) -> VirtioPciCap:
    """The live bytes of a capability, to lie in."""
    data = function._config.data
    found = ConfigSpace.parse(bytes(data)).virtio(cfg_type)
    assert found
    return VirtioPciCap(data, found.offset)


def lie(function: PciFunction, change: Callable[[PciFunction], None]) -> None:
    change(function)
    function._config._initial = bytes(function._config.data)  # also after a reset


LIES: dict[str, tuple[Callable[[PciFunction], None], str]] = {
    "region beyond its BAR": (lambda f: setattr(capability(f, CfgType.SWIOTLB), "length", 2 << 20), "breaks SW-D2"),
    "region that wraps": (lambda f: setattr(capability(f, CfgType.SWIOTLB), "offset", 0xFFFFF000), "breaks SW-D2"),
    "region without length": (lambda f: setattr(capability(f, CfgType.SWIOTLB), "length", 0), "breaks SW-D2"),
    "region in a BAR that is not there": (lambda f: setattr(capability(f, CfgType.SWIOTLB), "bar", 4), "breaks SW-D2"),
    "region over the registers": (lambda f: over_registers(f), "breaks SW-D2"),
    "no region": (lambda f: setattr(capability(f, CfgType.SWIOTLB), "cfg_type", 99), "there is no capability 10"),
    "no common configuration": (lambda f: setattr(capability(f, CfgType.COMMON), "cfg_type", 99), "no capability 1 "),
    "another vendor": (lambda f: setattr(Type0Header(f._config.data), "vendor_id", 0x8086), "vendor 0x8086"),
    "another device": (lambda f: setattr(Type0Header(f._config.data), "device_id", 0x1041), "is not a block device"),
}


def over_registers(function: PciFunction) -> None:
    region = capability(function, CfgType.SWIOTLB)
    region.bar, region.length = 0, 0x8000


@pytest.mark.parametrize("name", LIES)
def test_a_capability_that_lies_is_not_believed(make_served: Callable[..., Any], name: str) -> None:
    change, why = LIES[name]
    served = make_served()
    lie(served.function, change)
    with served.running(), pytest.raises(ProbeError, match=why):
        open_disk(served.path)


def test_a_device_that_refuses_the_features_is_failed(
    make_served: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = make_served()
    served.function.core.offered &= ~(1 << 27)  # a capability, and no feature: SW-V2, a warning
    with served.running(), pytest.raises(NegotiationError, match="refuses the features"):
        open_disk(served.path)


def test_a_legacy_device_is_refused(make_served: Callable[..., Any]) -> None:
    served = make_served()
    served.function.core.offered &= ~(1 << 32)
    with served.running(), pytest.raises(ProbeError, match=r"6\.1: VIRTIO_F_VERSION_1"):
        open_disk(served.path)


def test_more_than_the_region_holds_is_refused(served: Any) -> None:
    with VirtioPci(VfioUserBus.connect(served.path)) as device:
        first = device.reserve(100, align=4096)
        assert first % 4096 == 0
        with pytest.raises(ProbeError, match="too small for the queues"):
            device.reserve(1 << 20)
        assert device.free == (first + 100, (1 << 20) - first - 100)


def test_a_queue_that_is_not_there_is_refused(served: Any) -> None:
    with VirtioPci(VfioUserBus.connect(served.path)) as device:
        device.negotiate(0)
        for index, size in ((0, 512), (7, 16)):
            with pytest.raises(ProbeError, match=f"queue {index} takes fewer than {size}"):
                device.set_up_queue(index, size)


# Servers that answer nonsense


class Liar:
    """A server that answers each command with what it is told to."""

    def __init__(self, path: Path, answers: dict[int, bytes]) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.answers = answers
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        sock, _ = self.listener.accept()
        with sock:
            while header := sock.recv(16, socket.MSG_WAITALL):
                msg_id, command, size, _, _ = Header.codec.unpack(header)
                sock.recv(size - 16, socket.MSG_WAITALL)
                answer = self.answers.get(command)
                if answer is None:
                    return
                raw = answer if answer[:1] == b"!" else Header.codec.pack(msg_id, command, 16 + len(answer), 1, 0)
                sock.sendall(raw[1:] if answer[:1] == b"!" else raw + answer)

    def close(self) -> None:
        self.thread.join(timeout=30)
        self.listener.close()


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Callable[[dict[int, bytes]], Path]]:
    made: list[Liar] = []

    def make(answers: dict[int, bytes]) -> Path:
        made.append(Liar(tmp_path / "liar", answers))
        return tmp_path / "liar"

    yield make
    for each in made:
        each.close()


def version(capabilities: Any) -> bytes:
    return Version.codec.pack(0, 0) + json.dumps({"capabilities": capabilities}).encode() + b"\0"


GOOD = {int(Cmd.VERSION): version({}), int(Cmd.DEVICE_GET_INFO): (16).to_bytes(4, "little") + bytes(12)}


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ({}, Disconnected),
        ({Cmd.VERSION: b""}, ProtocolError),
        ({Cmd.VERSION: Version.codec.pack(9, 9)}, ProtocolError),
        ({Cmd.VERSION: Version.codec.pack(0, 0) + b"[]\0"}, ProtocolError),
        ({Cmd.VERSION: Version.codec.pack(0, 0) + b"\xff\0"}, ProtocolError),
        ({Cmd.VERSION: version(7)}, ProtocolError),
        ({Cmd.VERSION: version({"max_data_xfer_size": 0})}, ProtocolError),
        ({Cmd.VERSION: version({"max_data_xfer_size": -1})}, ProtocolError),
        ({Cmd.VERSION: version({"max_msg_fds": "many"})}, ProtocolError),
        ({Cmd.VERSION: b"!" + Header.codec.pack(1, 1, 2**32 - 1, 1, 0)}, ProtocolError),
        ({Cmd.VERSION: b"!" + Header.codec.pack(1, 1, 3, 1, 0)}, ProtocolError),
        ({Cmd.VERSION: b"!" + Header.codec.pack(99, 1, 16, 1, 0)}, ProtocolError),
        ({Cmd.VERSION: b"!" + Header.codec.pack(1, 1, 16, 0, 0)}, ProtocolError),
        ({Cmd.VERSION: b"!" + Header.codec.pack(1, 1, 16, 0x21, 22)}, ProtocolError),
        (GOOD | {int(Cmd.DEVICE_GET_INFO): b"short"}, ProtocolError),
    ],
    ids=range(15),
)
def test_a_server_that_answers_nonsense_is_found_out(
    liar: Callable[..., Path], answers: dict[int, bytes], error: type[NodmaError]
) -> None:
    path = liar({int(command): answer for command, answer in answers.items()})
    with pytest.raises(error):
        Client.connect(path)  # and its socket is closed: a warning of one that is not would be an error here


def test_a_read_that_is_too_short_is_found_out(liar: Callable[..., Path]) -> None:
    path = liar(GOOD | {int(Cmd.REGION_READ): bytes(17)})
    with Client.connect(path) as client, pytest.raises(ProtocolError, match="of 4 bytes was answered with 1"):
        client.region_read(Region.CONFIG, 0, 4)
