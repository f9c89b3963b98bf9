"""What fails while a client is served, comes or leaves: it costs that client at most, and the next one is served."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from nodma.errors import Disconnected
from nodma.spec.vfio_user import Irq, IrqSetFlag, Region
from nodma.vfio_user import Client
from nodma.vfio_user import server as module


def fails(*words: Any) -> Any:
    raise ZeroDivisionError("a bug")


def is_served(path: Any) -> bool:
    """Whether a client gets its answers."""
    with Client.connect(path) as client:
        client.act_on_irqs(Irq.MSIX, 0, 1, IrqSetFlag.ACTION_MASK)
        client.reset()
        return client.region_read(Region.CONFIG, 0, 2) == b"\xf4\x1a"


def read_until_it_fails(client: Client) -> None:
    while True:
        client.region_read(Region.CONFIG, 0, 2)


@pytest.mark.parametrize("what", ["service", "tick"])
def test_a_client_whose_device_fails_is_let_go(served: Any, caplog: pytest.LogCaptureFixture, what: str) -> None:
    with Client.connect(served.path) as client:
        setattr(served.function, what, fails)
        served.loop.call_soon_threadsafe(served.server._tick if what == "tick" else served.server._service)
        with pytest.raises(Disconnected):
            read_until_it_fails(client)
    delattr(served.function, what)
    assert "ZeroDivisionError: a bug" in caplog.text
    assert is_served(served.path)


def test_a_device_that_cannot_be_made_ready_is_tried_again(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    tries: list[int] = []

    def detach() -> None:
        tries.append(1)
        if len(tries) < 3:
            fails()
        type(served.function).detach(served.function)

    served.function.detach = detach
    assert is_served(served.path)
    assert is_served(served.path), "it waited until the third try"
    assert len(tries) >= 3
    assert "cannot be made ready for the next client; trying again" in caplog.text


def test_an_end_whose_requests_fail_is_an_end(make_served: Callable[..., Any]) -> None:
    with make_served().running() as served:
        assert is_served(served.path)
        served.function.finish = fails
    assert not served.path.exists()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ECONNABORTED])
def test_a_client_that_cannot_be_accepted_now_is_accepted_later(served: Any, error: int) -> None:
    class Exhausted:
        """A listener that has no descriptor left, once."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def accept(self) -> Any:
            served.server._listener = self.sock
            raise OSError(error, "none left")

    served.server._listener = Exhausted(served.server._listener)
    assert is_served(served.path)


@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError])
def test_a_client_that_cannot_be_taken_is_turned_away(
    served: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def connection(*words: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, "Connection", connection)
        with pytest.raises(Disconnected):
            Client.connect(served.path)
    assert is_served(served.path)


def test_a_socket_that_cannot_be_closed_keeps_nobody_waiting(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(module.Connection):
        def close(self) -> None:
            super().close()
            fails()

    with monkeypatch.context() as patch:
        patch.setattr(module, "Connection", Stuck)
        assert is_served(served.path)
        assert is_served(served.path)
    assert is_served(served.path)
