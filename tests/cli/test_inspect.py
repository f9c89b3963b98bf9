"""``nodma inspect``, and that it leaves a device as it found it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nodma.cli import cli
from nodma.cli.inspect_socket import MAX_QUEUES, inspect_regions
from nodma.errors import Disconnected, NodmaError, ProtocolError, Refused
from nodma.pci import ConfigSpace
from nodma.pci_function import PoolKeeper, SharedPoolConfig
from nodma.spec.layout import Field
from nodma.spec.pci import EXTENDED_CONFIG_SIZE
from nodma.spec.profiles import DMB
from nodma.spec.vfio_user import Region, RegionFlag
from nodma.spec.virtio import DeviceType
from nodma.spec.virtio_pci import MODERN_DEVICE_BASE, VIRTIO_VENDOR, CfgType, CommonCfg, VirtioPciCfgCap
from nodma.vfio_user.client import Client, RegionReply


def run(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)], input=stdin)


def error(*arguments: str | Path, stdin: bytes | None = None) -> str:
    """What the command fails with, which the program prints before it exits with 1."""
    result = run(*arguments, stdin=stdin)
    assert isinstance(result.exception, NodmaError)
    return str(result.exception)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a block device with two queues, in a process of its own."""
    place = tmp_path_factory.mktemp("server")
    image, path = place / "disk.img", place / "s"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    command = [sys.executable, "-m", "nodma", "serve", "blk", "-s", path, "--image", image, "--queues", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("ready: ")
            yield path
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=10)


def snapshot(client: Client) -> tuple[bytes, bytes]:
    """What there is to see of a device: its configuration space, and its common configuration."""
    config = client.region_read(Region.CONFIG, 0, EXTENDED_CONFIG_SIZE)
    common = ConfigSpace.parse(config).virtio(CfgType.COMMON)
    assert common is not None
    return config, client.region_read(common.bar, common.offset_in_bar, CommonCfg.size)


# A real server


def test_socket(server: Path) -> None:
    result = run(server)
    assert result.exit_code == 0
    assert result.output == "00:00.0 Mass storage controller: Virtio block device [1af4:1042] (rev 01)\n"


def test_socket_in_full(server: Path) -> None:
    text = run("-vv", server).output
    assert "] VirtIO: SWIOTLB\n\t\tBAR=2 offset=00000000 size=01000000\n" in text
    features = text[text.index("Features offered") : text.index("Queues")]
    assert "SWIOTLB" in features
    assert "VERSION_1" in features
    assert "\tQueues: 2\n\t\tQueue 0: size 256, not enabled\n\t\tQueue 1: size 256, not enabled\n" in text
    assert "\t\tcapacity: 2048 sectors (1M)\n" in text
    assert text.endswith("\tFindings: none\n")


def test_socket_as_json(server: Path) -> None:
    record = json.loads(run("--json", server).stdout)
    assert record["findings"] == []
    assert record["problems"] == []
    assert 10 in [cap["virtio"]["cfg_type"] for cap in record["capabilities"] if "virtio" in cap]


def test_socket_is_left_as_found(server: Path) -> None:
    with Client.connect(server) as client:
        before = snapshot(client)
    assert run("-vv", server).exit_code == 0
    with Client.connect(server) as client:
        assert snapshot(client) == before


def test_device_in_use_is_left_as_found(server: Path) -> None:
    """Over one connection, so that no disconnection resets what a driver has set."""
    with Client.connect(server) as client:
        config, _ = snapshot(client)
        common = ConfigSpace.parse(config).virtio(CfgType.COMMON)
        assert common is not None
        for field, value in (
            (CommonCfg.device_feature_select, 1),
            (CommonCfg.queue_select, 1),
            (CommonCfg.device_status, 3),
        ):
            data = value.to_bytes(field.size, "little")
            client.region_write(common.bar, common.offset_in_bar + field.offset, data)
        before = snapshot(client)
        report = inspect_regions(client)
        assert snapshot(client) == before
    assert report.state is not None
    assert report.state.status == 3
    assert report.problems == ()


@pytest.mark.skipif(shutil.which("lspci") is None, reason="lspci is not installed")
def test_lspci_reads_the_hexdump(server: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_text(run("--hexdump", server).output)
    text = subprocess.run(["lspci", "-F", dump, "-vv"], capture_output=True, text=True, check=True).stdout
    for name in ("CommonCfg", "Notify", "ISR", "DeviceCfg"):
        assert f"VirtIO: {name}\n" in text
    assert "\t\tBAR=2 offset=00000000 size=01000000\n" in text


def test_hexdump_is_a_source(server: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_text(run("--hexdump", server).output)
    from_file, from_stdin = run("-v", dump), run("-v", "-", stdin=dump.read_bytes())
    assert "] VirtIO: SWIOTLB\n" in from_file.output
    assert from_file.output == from_stdin.output
    assert run("--hexdump", dump).output == dump.read_text()


# Other sources


def test_several_devices(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_text("00:01.0 A\n00: 86 80 57 0d\n\n00:02.0 B\n00: ff ff ff ff\n")
    assert run(dump).output == (
        "00:01.0 Unclassified device: Device [8086:0d57] (rev 00)\n00:02.0 nothing answers here\n"
    )
    assert [json.loads(line)["slot"] for line in run("--json", dump).stdout.splitlines()] == ["00:01.0", "00:02.0"]
    assert run("--hexdump", dump).output.count("\n\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no device", "has no rows of a configuration space"),
        ("00:01.0 A\n00: xx\n", "line 2: expected an offset and bytes"),
    ],
)
def test_bad_dumps(tmp_path: Path, text: str, words: str) -> None:
    dump = tmp_path / "dump"
    dump.write_text(text)
    assert words in error(dump)
    assert words in error("-", stdin=text.encode())


def test_disk_image_is_no_dump(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(1 << 30)
    assert "expected a dump" in error(image)


VF = """31:10.0 {title}
00: ff ff ff ff 04 00 10 00 00 30 00 01 08 00 80 00
10: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
20: 00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 02 00
30: 00 00 00 00 40 00 00 00 00 00 00 00 ff 00 00 00
40: 09 00 10 01 01 00 00 00 00 0f 00 00 38 00 00 00
"""


def test_a_virtual_function_has_the_ids_of_its_title(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_text(VF.format(title="Class 0100: 1af4:1042 (rev 01)"))
    assert "Virtio block device [1af4:1042]" in run(dump).output
    dump.write_text(VF.format(title="SCSI storage controller"))
    shown = run("-vv", dump).output
    assert "nothing answers" not in shown
    assert "reads as ffff:ffff, and its ids are not known" in shown


def test_what_is_not_in_a_dump_is_not_called_good(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_text(VF.format(title="Class 0100: 1af4:1042 (rev 01)"))
    shown = run("-vv", dump).output
    assert "Not checked:\n\t\tcapability 1 (COMMON) at 0x40: BAR 1 has no address" in shown
    assert "the features that it offers: only a running server tells" in shown
    assert json.loads(run("--json", dump).output)["not_checked"]


def test_check_exits_by_the_worst_finding(server: Path, tmp_path: Path) -> None:
    assert run("--check", server).exit_code == 0
    assert not json.loads(run("--json", server).output)["not_checked"]
    dump = tmp_path / "dump"
    dump.write_text(VF.format(title="Class 0100: 1af4:1042 (rev 01)"))
    assert run("--check", dump).exit_code == 4  # mandatory capabilities are missing
    dump.write_text("00:02.0 B\n00: ff ff ff ff\n")
    assert "no function answers at 00:02.0" in error("--check", dump)


def test_missing_function() -> None:
    assert "no PCI function ffff:ff:1f.7" in error("ffff:ff:1f.7")


def test_no_source_of_any_kind(tmp_path: Path) -> None:
    for source in ("nonsense", str(tmp_path), str(tmp_path / "gone")):
        said = error(source)
        assert all(kind in said for kind in ("socket", "PCI address", "lspci -xxxx", "standard input"))


def test_one_form_at_a_time() -> None:
    assert run("--json", "--hexdump", "-").exit_code == 2


# A device that watches


class Watched:
    """Regions of the real device's shape that note what is done to them, and fail where told to."""

    def __init__(self, config: bytes) -> None:
        self.config = config
        self.reads: list[tuple[int, int, int]] = []
        self.writes: list[tuple[int, int, int]] = []
        self.registers = CommonCfg.new(num_queues=1, device_feature_select=0x55, queue_select=0x66, queue_size=8)
        self.fails_at: int | None = None
        self.gone = False
        self.generation = 0
        self.rom = 0

    def region_info(self, index: int) -> RegionReply:
        sizes = {Region.BAR0: 32 << 10, Region.BAR2: 16 << 20, Region.CONFIG: len(self.config), Region.ROM: self.rom}
        return RegionReply(sizes.get(Region(index), 0), RegionFlag(0), 0, None)

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        if self.gone:
            raise Disconnected("the server is gone")
        self.reads.append((region, offset, count))
        if region == Region.CONFIG:
            return self.config[offset : offset + count]
        if offset == self.fails_at:
            raise Refused("REGION_READ", 5)
        if offset == CommonCfg.config_generation.offset:
            self.registers.config_generation = self.registers.config_generation + self.generation & 0xFF
        return bytes(self.registers)[offset : offset + count].ljust(count, b"\0")

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        self.writes.append((region, offset, value))
        [field] = [field for field in CommonCfg.fields if field.offset == offset]
        setattr(self.registers, field.name, value)


@pytest.fixture(scope="module")
def config(server: Path) -> bytes:
    with Client.connect(server) as client:
        return snapshot(client)[0]


@pytest.fixture
def watched(config: bytes) -> Watched:
    return Watched(config)


def test_only_selectors_are_written_and_restored(watched: Watched) -> None:
    before = bytes(watched.registers)
    inspect_regions(watched)
    assert bytes(watched.registers) == before
    assert {offset for _, offset, _ in watched.writes} == {
        CommonCfg.device_feature_select.offset,
        CommonCfg.queue_select.offset,
    }


def test_nothing_with_side_effects_is_read(watched: Watched, config: bytes) -> None:
    inspect_regions(watched)
    space = ConfigSpace.parse(config)
    [isr], [window] = space.virtio_all(CfgType.ISR), space.virtio_all(CfgType.PCI)
    data = window.offset + VirtioPciCfgCap.pci_cfg_data.offset
    for region, offset, count in watched.reads:
        if region == Region.CONFIG:
            assert offset + count <= data or data + 4 <= offset
        else:
            assert offset + count <= isr.offset_in_bar or isr.end <= offset


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (CommonCfg.device_status, "the device status is not known"),
        (CommonCfg.device_feature, "what features are offered is not known"),
        (CommonCfg.num_queues, "the number of queues is not known"),
        (CommonCfg.queue_size, "what queues there are is not known"),
        (CommonCfg.config_generation, "the block device configuration is not known"),
    ],
)
def test_what_cannot_be_read_is_told(watched: Watched, field: Field[int], said: str) -> None:
    watched.fails_at = field.offset
    report = inspect_regions(watched)
    assert len(report.problems) == 1
    assert report.problems[0].startswith(said)
    assert (watched.registers.device_feature_select, watched.registers.queue_select) == (0x55, 0x66)


def test_server_that_goes_is_told_once(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    real = watched.region_info

    def info(index: int) -> RegionReply:
        watched.gone = index != Region.CONFIG
        return real(index)

    monkeypatch.setattr(watched, "region_info", info)
    report = inspect_regions(watched)
    assert report.space.is_virtio
    assert report.problems == ("the device status is not known: the server is gone",)


def test_config_that_never_settles(watched: Watched) -> None:
    watched.generation = 1
    [problem] = inspect_regions(watched).problems
    assert "the block device configuration is not known: it changed" in problem


def test_an_expansion_rom_is_found(watched: Watched) -> None:
    def about_roms() -> list[str]:
        return [finding.message for finding in inspect_regions(watched).findings if "ROM" in finding.message]

    assert about_roms() == []
    watched.rom = 65536
    assert ['"rombar":0' in message for message in about_roms()] == [True]


def test_very_many_queues(watched: Watched) -> None:
    watched.registers.num_queues = 0xFFFF
    state = inspect_regions(watched).state
    assert state is not None
    assert len(state.queues) == MAX_QUEUES


def test_no_common_configuration(watched: Watched) -> None:
    common = ConfigSpace.parse(watched.config).virtio(CfgType.COMMON)
    assert common is not None
    changed = bytearray(watched.config)
    changed[common.offset + 3] = 0
    watched.config = bytes(changed)
    report = inspect_regions(watched)
    assert "there is no common configuration" in report.problems[0]
    assert not watched.writes


def test_other_devices_are_not_touched(watched: Watched) -> None:
    watched.config = (0x8086_0000 | 0x8086).to_bytes(4, "little") + watched.config[4:]
    assert inspect_regions(watched).state is None
    assert {region for region, _, _ in watched.reads} == {Region.CONFIG}


def test_other_virtio_devices(watched: Watched) -> None:
    ids = VIRTIO_VENDOR | (MODERN_DEVICE_BASE + DeviceType.ENTROPY) << 16
    watched.config = ids.to_bytes(4, "little") + watched.config[4:]
    state = inspect_regions(watched).state
    assert state is not None
    assert state.block is None


def test_config_region_too_small(watched: Watched) -> None:
    watched.config = watched.config[:16]
    with pytest.raises(ProtocolError, match="of 16 bytes"):
        inspect_regions(watched)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"profile": DMB}, ["VirtIO: SharedMemory", "id=219", "DMB region: the shared memory with id 219"]),
        ({"share": "owner"}, ["Owner: self, and others may use it"]),
        ({"share": 3}, ["Owner: function 3 of this device"]),
    ],
)
def test_either_profile_and_shared_regions_are_shown_with_nothing_wrong(
    make_served: Callable[..., Any], options: dict[str, Any], words: list[str]
) -> None:
    keeper = PoolKeeper(1 << 20)
    if "share" in options:
        options = {"share": SharedPoolConfig(keeper, None if options["share"] == "owner" else options["share"])}
    with make_served(**options).running() as served:
        shown = run("-vv", served.path).output
    keeper.close()
    assert all(word in shown for word in words), shown
    assert shown.endswith("Findings: none\n")
