"""The program of a device: its options, its errors, its end."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from nodma import Device, Layout, Queue, le32, main
from nodma.driver import VfioUserBus, VirtioPci
from nodma.errors import UsageError
from nodma.hosting import program


class Sides(Layout):
    sides = le32()


EXAMPLES = Path(__file__).parents[2] / "examples"

DEVICE = """
import os, signal, time, click
from nodma import Device, Layout, Queue, le32, main
class Odd(Device):
    "An odd device."
    device_type = 0x2A
    queues = (Queue("echo"),)
    def __init__(self, {arguments}):
        super().__init__()
        {init}
    def echo(self, request): ...
    def describe(self): return "odd"
    def close(self):
        {close}
main(Odd, options=[{options}])
"""


class Child(subprocess.Popen[str]):
    """A process that does not outlive its test, however that ends."""

    def __exit__(self, *error: Any) -> None:
        self.kill()
        super().__exit__(*error)


def start(
    tmp_path: Path,
    *words: str,
    arguments: str = "",
    init: str = "pass",
    close: str = "pass",
    options: str = "",
    **more: Any,
) -> Child:
    code = DEVICE.format(arguments=arguments, init=init, close=close, options=options)
    command = [sys.executable, "-c", code, "-s", str(tmp_path / "s"), *words]
    return Child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def test_options_and_arguments_of_its_own(tmp_path: Path) -> None:
    more = 'click.option("--sides", default=6), click.argument("words", nargs=-1)'
    show = "self.describe = lambda: f'{sides} {words}'"
    with start(tmp_path, "--sides", "8", "--", "a", "-b", arguments="sides, words", init=show, options=more) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("ready: 8 ('a', '-b') on ")
        process.terminate()
        assert process.wait(30) == 0


def test_the_example_with_an_option(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "sided_dice.py", "-s", tmp_path / "s", "--sides", "20", "--json"]
    with Child(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["device"] == "SidedDice"
        with VirtioPci(VfioUserBus.connect(tmp_path / "s")) as device:
            assert device.device_config(Sides).sides == 20
        process.terminate()
        assert process.wait(30) == 0
    done = subprocess.run([*command[:-2], "1"], capture_output=True, text=True, timeout=30, check=False)
    why = "nodma: error: cannot create the device: ValueError: a die has 2 to 255 sides, not 1\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", why)
    assert "Sides of each die." in subprocess.run([*command[:2], "--help"], capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("init", "why"),
    [
        ("raise RuntimeError('no\\n\\n  luck')", "cannot create the device: RuntimeError: no luck"),
        ("open('/no/such/file')", "cannot create the device: [Errno 2] No such file or directory: '/no/such/file'"),
        ("raise KeyError", "cannot create the device: KeyError"),
        ("from nodma.errors import Unavailable; raise Unavailable('no TAP here')", "no TAP here"),
    ],
)
def test_an_error_of_init_is_one_line(tmp_path: Path, init: str, why: str) -> None:
    process = start(tmp_path, init=init)
    assert process.communicate(timeout=30) == ("", f"nodma: error: {why}\n")
    assert process.returncode == 1
    with start(tmp_path, "-v", init="raise ValueError('x')") as verbose:
        assert "Traceback" in verbose.communicate(timeout=30)[1]


def test_an_option_that_every_device_has_is_refused() -> None:
    class Clumsy(Device):
        queues = (Queue("x"),)

    with pytest.raises(UsageError, match="every device already has an option 'pool'"):
        main(Clumsy, options=[click.option("--pool")])


def test_an_end_that_fails_is_reported(tmp_path: Path) -> None:
    with start(tmp_path, "--json", close="raise OSError(5, 'the disk is gone')") as process:
        assert process.stdout
        process.stdout.readline()
        process.terminate()
        out, said = process.communicate(timeout=30)
        assert process.returncode == 1
        (problem,) = json.loads(out)["problems"]
        assert "the disk is gone" in problem
        assert "the disk is gone" in said
        assert "Traceback" not in said
    assert not (tmp_path / "s").exists()


def test_a_second_signal_ends_it_and_says_what_was_not_done(tmp_path: Path) -> None:
    hang = "print('closing', flush=True); time.sleep(999)"
    with start(tmp_path, close=hang) as process:
        assert process.stdout
        process.stdout.readline()
        process.terminate()
        assert process.stdout.readline() == "closing\n"
        while process.poll() is None:  # within a second of the first it counts as the same
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        assert process.returncode == 1
        assert process.stderr
        said = process.stderr.read()
    assert "nodma: error: ended by force, because SIGTERM arrived a second time; not done: the device: " in said
    assert "making what was written durable (odd)" in said
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("unbuffered", "where"), [("", "cannot write to <stdout>: "), ("1", "")])
def test_a_full_stdout_of_any_command_is_an_error_and_no_traceback(unbuffered: str, where: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nodma", "--help"],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, f"nodma: error: {where}No space left on device\n")


def test_an_interrupt_while_the_command_is_loaded_gives_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "nodma.cli":
                raise KeyboardInterrupt

    for name in [name for name in sys.modules if name.split(".")[:2] == ["nodma", "cli"]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("nodma.cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting, *sys.meta_path])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("nodma", run_name="__main__")
    assert end.value.code == 130


def test_a_closed_stdout_of_any_command_is_no_error_to_speak_of() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "nodma", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_keeper_that_is_no_socket(tmp_path: Path) -> None:
    words = ["--slot-fd", "0", "--pool-owner", "self"]
    with start(tmp_path, *words, stdin=subprocess.DEVNULL) as process:
        said = process.communicate(timeout=30)[1]
    assert (process.returncode, said.split(":")[:2]) == (2, ["nodma", " error"])
    assert "invalid --slot-fd or --pool-owner" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "nodma: error: cannot write to <it>: No space left on device\n"),
        (BrokenPipeError(32, "Broken pipe"), ""),
    ],
)
def test_what_stdout_still_holds_is_written_while_that_can_be_said(
    monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    class Failing:
        name = "<it>"

        def flush(self) -> None:
            raise error

        def fileno(self) -> int:
            return spare

    spare = os.dup(0)
    told: list[str] = []
    monkeypatch.setattr(program.output, "say_error", lambda text: told.append(f"nodma: error: {text}\n"))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["nothing"])
        patched.setattr(sys, "stdout", Failing())
        with pytest.raises(SystemExit) as ended:
            program.run(click.Command("nothing", callback=lambda: None), "nothing")
    os.close(spare)
    assert (ended.value.code, "".join(told)) == (1, said)


def test_a_command_says_how_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    for callback, code in ((lambda: sys.exit(3), 3), (lambda: sys.exit("text"), 1), (interrupted, 130)):
        monkeypatch.setattr(sys, "argv", ["x"])
        with pytest.raises(SystemExit) as ended:
            program.run(click.Command("x", callback=callback))
        assert ended.value.code == code
