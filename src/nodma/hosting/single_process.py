"""Run all functions of a slot in one process, on one loop."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nodma.device.image import Cache
from nodma.errors import UsageError
from nodma.hosting.host import poll_ns, report
from nodma.hosting.slot_config import FunctionConfig, Role, SlotConfig
from nodma.hosting.slot_devices import block_device
from nodma.loop import Loop
from nodma.pci_function import PciFunction, PoolKeeper, SharedPoolConfig
from nodma.spec.profiles import PROFILES, Policy
from nodma.vfio_user.listener import Listener, make_listener
from nodma.vfio_user.server import Server


class SingleProcess:
    """The functions of ``slot``, which listen while it is entered."""

    def __init__(self, slot: SlotConfig) -> None:
        self.slot = slot
        self.servers: list[Server] = []
        self.functions: list[PciFunction] = []
        self._stack = ExitStack()
        self.loop = Loop()

    def __enter__(self) -> SingleProcess:
        """Make them. Raises NodmaError, and leaves nothing behind, if one cannot be served."""
        keeper = PoolKeeper(self.slot.owner.pool) if self.slot.owner else None
        with ExitStack() as stack:
            if keeper:
                stack.callback(keeper.close)
            for config in self.slot.functions:
                self._make(config, keeper, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Close them all."""
        self._stack.close()
        self.loop.close()

    def _make(self, config: FunctionConfig, keeper: PoolKeeper | None, stack: ExitStack) -> None:
        function = _function(self.slot, config, keeper)
        stack.callback(function.close)
        listener: Listener = make_listener(config.socket)
        stack.callback(listener.remove)
        server = Server(function, listener.socket, self.loop)
        stack.callback(server.close)
        self.functions.append(function)
        self.servers.append(server)

    def run(self) -> list[dict[str, Any]]:
        """Serve until :meth:`stop`; then give what each reported."""
        self.loop.run()
        for server in self.servers:
            server.finish(2.0 / len(self.servers))
        pairs = zip(self.functions, self.servers, strict=True)
        return [
            {"function": number, "status": 0, "report": report(function, server)}
            for number, (function, server) in enumerate(pairs)
        ]

    def stop(self) -> None:
        """Have :meth:`run` return soon. May be called from a signal handler."""
        self.loop.stop()


def _function(slot: SlotConfig, config: FunctionConfig, keeper: PoolKeeper | None) -> PciFunction:
    share = None
    users = 1
    if config.role is not Role.PRIVATE:
        assert keeper
        assert slot.owner
        share = SharedPoolConfig(keeper, slot.owner.number if config.role is Role.SHARER else None)
        users = len(slot.users)
    options = config.options
    device = block_device(
        Path(str(options["image"])),
        pool=config.pool // users,
        read_only=bool(options.get("read-only", False)),
        queues=int(options.get("queues", 1)),
        serial=str(options.get("serial", "")),
        cache=_cache(str(options.get("cache", Cache.WRITEBACK.value))),
    )
    try:
        return PciFunction(
            device,
            pool=config.pool,
            profile=PROFILES[slot.profile],
            policy=Policy(slot.policy),
            share=share,
            threads=True,
            poll_ns=poll_ns(slot.poll),
        )
    except BaseException:
        device.close()
        raise


def _cache(text: str) -> Cache:
    try:
        return Cache(text)
    except ValueError as error:
        raise UsageError(f"cache is {text!r}; it can be {', '.join(Cache)}") from error
