"""``nodma serve blk`` as a user starts it, ends it, and gets it wrong."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nodma import __version__
from nodma.driver import open_disk
from nodma.hosting.limits import Needs
from nodma.procfs import ProcessView
from nodma.ring import COMPILED
from nodma.spec.vfio_user import Irq, IrqSetFlag, Region
from nodma.spec.virtio_pci import VIRTIO_VENDOR
from nodma.vfio_user import Client

NODMA = [sys.executable, "-m", "nodma"]


class Child(subprocess.Popen[str]):
    """A process that does not outlive its test, however that ends."""

    def __exit__(self, *error: Any) -> None:
        self.kill()
        super().__exit__(*error)


@contextmanager
def serving(*arguments: str | Path, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A device process, and its ready line."""
    command = [*NODMA, "serve", "blk", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            assert process.stdout
            yield process, process.stdout.readline()
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


def refused(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [*NODMA, "serve", "blk", *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_the_ready_line_says_where_and_how_to_attach(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    with serving("-s", path, "--image", image) as (process, line):
        argument = f'{{"driver":"vfio-user-pci","rombar":0,"socket":{{"path":"{path}","type":"unix"}}}}'
        assert line == f"ready: {image} (1M) on {path}, attach: -device {shlex.quote(argument)}\n"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))  # it accepts now
        process.terminate()
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0


def test_json_says_the_same_and_counts_at_the_end(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    with serving("-s", path, "--image", image, "--json", "--pool", "64K", "--serial", "me") as (process, line):
        ready = json.loads(line)
        assert (ready["format"], ready["auditable"]) == (1, False)
        assert (ready["event"], ready["socket"], ready["pool"]) == ("ready", str(path), 65536)
        option, argument = ready["qemu"]
        assert option == "-device"
        assert json.loads(argument) == {
            "driver": "vfio-user-pci",
            "rombar": 0,
            "socket": {"path": str(path), "type": "unix"},
        }
        with open_disk(path) as disk:
            assert disk.serial == "me"
            disk.pread(4096, 0)
        process.terminate()
        out, _ = process.communicate(timeout=30)
        end = json.loads(out)
        assert (end["format"], end["event"], end["clients"], end["requests"]) == (1, "end", 1, 2)
        assert end["device"]["bytes_read"] == 4096


def test_an_eventfd_that_its_client_has_block_does_not_stop_the_device(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    with serving("-s", path, "--image", image) as (process, _), Client.connect(path) as client:
        eventfd = os.eventfd(0)
        client.set_eventfds(Irq.MSIX, 0, [eventfd, eventfd])
        os.set_blocking(eventfd, True)  # for whoever shares it: the device too
        os.eventfd_write(eventfd, 2**64 - 2)
        for _ in range(3):
            client.act_on_irqs(Irq.MSIX, 0, 2, IrqSetFlag.ACTION_TRIGGER)
        assert client.region_read(Region.CONFIG, 0, 2) == VIRTIO_VENDOR.to_bytes(2, "little")
        os.close(eventfd)
        process.terminate()
        assert "made a full eventfd blocking" in process.communicate(timeout=30)[1]
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_cleanly_with_every_write_done(tmp_path: Path, image: Path, number: signal.Signals) -> None:
    path = tmp_path / "s"
    with serving("-s", path, "--image", image, "--queues", "2") as (process, _):
        disk = open_disk(path, queues=2)
        for sector in range(64):  # on their way, and nobody waits for them
            disk.submit_write(512 * sector, bytes([sector]) * 512)
        disk.kick()
        disk.device.check()  # a register read: the notifications before it have arrived
        process.send_signal(number)
        assert process.communicate(timeout=30)[1] == ""
        assert process.returncode == 0
        disk.close()
    assert not path.exists()
    assert image.read_bytes()[: 64 * 512] == b"".join(bytes([sector]) * 512 for sector in range(64))


def test_an_inherited_listening_socket_is_served(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fd = listener.fileno()
        with serving("--fd", str(fd), "--image", image, pass_fds=[fd]) as (process, line):
            assert f"on {path}, attach:" in line
            with open_disk(path) as disk:
                assert disk.pread(4, 512) == (1).to_bytes(4, "little")
            process.terminate()
            process.communicate(timeout=30)
            assert process.returncode == 0
    assert path.exists()  # whoever made it removes it


class Notified:
    """What a service tells systemd: that it is ready, without a word on stdout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(30)
        self.environment = os.environ | {"NOTIFY_SOCKET": str(path)}

    def next(self) -> str:
        return self.socket.recv(4096).decode().splitlines()[0]


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[Notified]:
    made = Notified(tmp_path / "notify")
    yield made
    made.socket.close()


@contextmanager
def full_pipe() -> Iterator[int]:
    """The writing end of a pipe that is full, and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    yield writer
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize("which", ["stdout", "stderr"])
def test_nobody_who_reads_holds_nobody_up(tmp_path: Path, image: Path, notified: Notified, which: str) -> None:
    path = tmp_path / "s"
    with full_pipe() as writer:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, which: writer}
        command = [*NODMA, "serve", "blk", "-vv", "--json", "-s", path, "--image", image]
        with Child(command, env=notified.environment, **streams) as process:
            try:
                assert notified.next() == "READY=1"
                for _ in range(3):
                    with open_disk(path) as disk:
                        assert disk.size == 1 << 20
                process.terminate()
                assert notified.next() == "STOPPING=1"
                assert process.wait(30) == 0
            finally:
                process.kill()


@pytest.mark.parametrize("how", [">/dev/full 2>/dev/full", ">&- 2>&-", "<&- >&-", "| true"])
def test_output_that_is_full_closed_or_gone_is_nothing_to_end_for(
    tmp_path: Path, image: Path, notified: Notified, how: str
) -> None:
    path = tmp_path / "s"
    before = image.read_bytes()
    command = shlex.join([*NODMA, "serve", "blk", "-vv", "-s", str(path), "--image", str(image)])
    line = f"{command} 2>{tmp_path / 'err'} {how} & echo $! >{tmp_path / 'pid'}; wait $!" if how[0] != "|" else (
        f"set -o pipefail; (echo $BASHPID >{tmp_path / 'pid'}; exec {command} 2>{tmp_path / 'err'}) {how}"
    )  # fmt: skip
    with Child(["bash", "-c", line], env=notified.environment) as shell:
        try:
            assert notified.next() == "READY=1"
            with open_disk(path) as disk:
                assert disk.pread(512, 0) == before[:512]
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
            assert shell.wait(30) == 0
        finally:
            shell.kill()
    assert image.read_bytes() == before
    assert "Traceback" not in (tmp_path / "err").read_text()


def test_systemd_hands_over_the_socket(tmp_path: Path, image: Path, notified: Notified) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        launch = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3);"
            " os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
            " os.execv(sys.executable, [sys.executable, '-m', 'nodma', 'serve', 'blk', *sys.argv[2:]])"
        )
        fd = listener.fileno()
        for where in ([], ["-s", str(path)]):
            command = [sys.executable, "-c", launch, str(fd), "--image", image, *where]
            with Child(command, pass_fds=[fd], env=notified.environment) as process:
                assert notified.next() == "READY=1"
                with open_disk(path) as disk:
                    assert disk.size == 1 << 20
                process.terminate()
                assert notified.next() == "STOPPING=1"
                assert process.wait(30) == 0
            assert path.exists()


def test_a_socket_is_for_a_group_that_may_connect(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    with serving("-s", path, "--image", image, "--socket-group", str(os.getgid())):
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, os.getgid())
    with serving("-s", path, "--image", image, "--socket-mode", "666"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666


def low_limit(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_queues_than_the_soft_limit_allows_work(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    queues, soft = (256, 1024) if COMPILED else (32, 128)  # interpreted, 1,300 threads are too many
    limit = low_limit(soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with serving("-s", path, "--image", image, "--queues", str(queues), preexec_fn=limit) as (process, line):
        assert line.startswith("ready")
        with open_disk(path, queues=queues) as disk:
            disk.pread(512, 0)
            held = sum(1 for _ in Path(f"/proc/{process.pid}/fd").iterdir())
            needs = Needs()
            needs.add(queues)
            assert soft < held <= needs.descriptors
            assert sum(1 for _ in Path(f"/proc/{process.pid}/task").iterdir()) <= needs.threads


def test_queues_that_could_not_be_served_are_refused_before_it_is_ready(tmp_path: Path, image: Path) -> None:
    command = [*NODMA, "serve", "blk", "-s", tmp_path / "s", "--image", image, "--queues", "256"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, preexec_fn=low_limit(1024, 1024)
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "256 queues need up to" in done.stderr
    assert "the hard limit of this process is 1024: raise it" in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_device_process_is_small(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    with serving("-s", path, "--image", image, "--auditable") as (process, _), open_disk(path) as disk:
        for _ in range(20):
            disk.pread(1 << 20, 0)
        view = ProcessView(process.pid)
        assert view.resident() - view.resident_shared() < 60 << 20
        assert [mapped.size for mapped in view.maps() if mapped.writable_shared] == [16 << 20]


def test_it_outlives_its_clients(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    with serving("-s", path, "--image", image, "--auditable") as (process, _):
        before = None
        for number in range(5):
            with open_disk(path) as disk:
                disk.pwrite(bytes([number]) * 512, 0)
                assert disk.pread(512, 0) == bytes([number]) * 512
            with open_disk(path):  # so that the last one's end was seen
                held = len(ProcessView(process.pid).descriptors())
            before = before or held
            assert held == before
    assert image.read_bytes()[:512] == b"\4" * 512


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["--image", "{missing}"], 1, "nodma: error: the image {missing} does not exist: create one"),
        (["--image", "{directory}"], 1, "is a directory: it must be"),
        (["--image", "{odd}"], 1, "has 1000 bytes, expected a multiple of 512"),
        (
            ["--image", "{image}", "--pool", "3M"],
            2,
            "the pool must be a power of two from 64K to 4G",
        ),
        (["--image", "{image}", "--pool", "32K"], 2, "from 64K to 4G"),
        (["--image", "{image}", "--pool", "8G"], 2, "from 64K to 4G"),
        (["--image", "{image}", "--pool", "lots"], 2, "invalid size 'lots': give bytes, or a number with suffix"),
        (["--image", "{image}", "--queues", "0"], 2, "0 is not in the range 1<=x<=256"),
        (["--image", "{image}", "--serial", "x" * 21], 2, "expected up to 20 ASCII characters"),
        (["--image", "{image}", "--socket-mode", "999"], 2, "invalid mode '999': give permissions in octal"),
        (["--image", "{image}", "--socket-group", "nobody-at-all"], 1, "no group 'nobody-at-all' on this system"),
        (["--image", "{image}", "--profile", "dmb", "--policy", "hopeful"], 2, "policy hopeful is not available with"),
        (["--image", b"{image}\xff"], 2, "\\udcff is not UTF-8: QEMU's arguments are JSON"),
        (["--image", "{image}", "--profile", "other"], 2, "'other' is not"),
        (["--image", "{image}", "--policy", "other"], 2, "'other' is not one of 'required', 'hopeful'"),
        (["--image", "{image}", "--fd", "5"], 2, "give --socket-path PATH or --fd N, not both"),
        ([], 2, "Missing option '--image'"),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else None,
)
def test_what_cannot_be_served_is_said_and_leaves_nothing(
    tmp_path: Path, image: Path, arguments: list[str], code: int, why: str
) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(bytes(1000))
    names = {"missing": tmp_path / "missing", "directory": tmp_path, "odd": odd, "image": image}
    path = tmp_path / "s"
    got, said = refused("-s", path, *(os.fsdecode(argument).format(**names) for argument in arguments))
    assert got == code
    assert why.format(**names) in said
    assert "Traceback" not in said
    assert not path.exists()


WITHOUT_RIGHTS = """
import ctypes, os, sys
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24
ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)  # so that root is held to permissions too
os.execv(sys.executable, [sys.executable, "-m", "nodma", "serve", "blk", *sys.argv[1:]])
"""


def test_an_unwritable_image_is_refused(tmp_path: Path, image: Path) -> None:
    image.chmod(0o400)
    command = [sys.executable, "-c", WITHOUT_RIGHTS, "-s", tmp_path / "s", "--image", image]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"no permission to write the image {image} (use --read-only to serve it read-only)" in done.stderr


def test_an_image_that_not_even_root_may_write_is_refused_unless_read_only(tmp_path: Path) -> None:
    """A program that runs: the kernel lets nobody open it for writing."""
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    os.truncate(program, -(-program.stat().st_size // 512) * 512)
    with subprocess.Popen([program, "60"]) as running:
        try:
            code, said = refused("-s", tmp_path / "s", "--image", program)
            assert (code, f"cannot open the image {program}: Text file busy" in said) == (1, True)
            with serving("-s", tmp_path / "s", "--image", program, "--read-only") as (_, line):
                assert "read-only" in line
        finally:
            running.kill()


def test_a_file_without_a_size_is_refused(tmp_path: Path) -> None:
    code, said = refused("-s", tmp_path / "s", "--image", "/proc/version", "--read-only")
    assert code == 1
    assert "nodma: error: cannot use the image /proc/version: " in said


def test_a_socket_in_use_is_refused_and_goes_on_being_served(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    other = tmp_path / "other.img"
    other.write_bytes(bytes(512))
    with serving("-s", path, "--image", image):
        code, said = refused("-s", path, "--image", other)
        assert (code, f"nodma: error: the socket {path} is in use" in said) == (1, True)
        with open_disk(path) as disk:
            assert disk.size == 1 << 20


def test_a_killed_servers_socket_is_taken_over(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    with serving("-s", path, "--image", image) as (process, _):
        process.kill()
        process.communicate()
        assert path.exists()
    with serving("-s", path, "--image", image) as (_, line):
        assert line.startswith("ready: ")


def test_verbose_says_what_happens(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    with serving("-s", path, "--image", image, "-v") as (process, _):
        with open_disk(path):
            pass
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert "nodma: INFO: client 1 connected" in said
    assert "the driver is ready, features 0x" in said


def test_help_and_version() -> None:
    for arguments, words in (
        (["--help"], "inspect"),
        (["serve", "blk", "--help"], "--policy"),
        (["--version"], __version__),
    ):
        done = subprocess.run([*NODMA, *arguments], capture_output=True, text=True, check=True, timeout=30)
        assert words in done.stdout
