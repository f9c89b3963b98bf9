"""Assemble all functions of a slot in this process."""

from __future__ import annotations

from functools import partial

from nodma.hosting.devices import KINDS
from nodma.hosting.host import FunctionSettings, Host
from nodma.hosting.listeners import Listeners
from nodma.hosting.slot_config import FunctionConfig, Role, SlotConfig
from nodma.pci_function import PoolKeeper, SharedPoolConfig
from nodma.spec.profiles import PROFILES, Policy


def assemble_slot(host: Host, slot: SlotConfig, listeners: Listeners) -> None:
    """Make the functions of ``slot``, whose devices all come with nodma. Raises NodmaError if one cannot be served."""
    keeper = None
    if slot.owner:
        keeper = PoolKeeper(slot.owner.pool)
        host.at_end(keeper.close)
    for config in slot.functions:
        kind = KINDS[config.device]
        users = 1 if config.role is Role.PRIVATE else len(slot.users)
        make = partial(kind.make, pool=config.pool // users, **kind.read(config.options))
        host.add(config.name, make, partial(listeners.at, config.socket), _settings(slot, config, keeper))


def _settings(slot: SlotConfig, config: FunctionConfig, keeper: PoolKeeper | None) -> FunctionSettings:
    shared = None
    if config.role is not Role.PRIVATE:
        assert keeper
        assert slot.owner
        shared = SharedPoolConfig(keeper, slot.owner.number if config.role is Role.SHARER else None)
    return FunctionSettings(config.pool, PROFILES[slot.profile], Policy(slot.policy), slot.poll, shared)
