"""What a slot can be, and what is said of one that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.errors import Unavailable, UsageError
from nodma.hosting.slot_config import Processes, Role, load_config, make_config, parse_function

A = {"image": "a.img", "socket": "a.sock"}
B = {"image": "b.img", "socket": "b.sock"}


def test_a_shared_slot_has_an_owner_and_sharers(tmp_path: Path) -> None:
    path = tmp_path / "slot.toml"
    path.write_text(
        """
        pool = "32M"
        share = true
        slot = 6
        [[function]]
        socket = "a.sock"
        image = "a.img"
        queues = 2
        [[function]]
        device = "blk"
        socket = "b.sock"
        image = "b.img"
        read-only = true
        """
    )
    slot = load_config(path)
    assert [function.role for function in slot.functions] == [Role.OWNER, Role.SHARER]
    assert [function.pool for function in slot.functions] == [32 << 20] * 2
    assert slot.functions[1].options == {"image": "b.img", "read-only": True}
    assert (slot.slot, slot.processes, slot.owner) == (6, Processes.EACH, slot.functions[0])


def test_roles_may_be_given_to_each() -> None:
    functions = [A | {"role": "private", "pool": "1M"}, B | {"role": "owner", "pool": "2M"}]
    slot = make_config({"function": [*functions, {"image": "c", "socket": "c", "role": "sharer"}]})
    assert [function.pool for function in slot.functions] == [1 << 20, 2 << 20, 2 << 20]
    assert [function.number for function in slot.users] == [1, 2]


def test_a_program_is_a_function(tmp_path: Path) -> None:
    function = {"program": ["python", "dice.py"], "socket": "d.sock", "sides": 8}
    slot = make_config({"function": [function]})
    assert slot.functions[0].program == ("python", "dice.py")
    assert slot.functions[0].options == {"sides": 8}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "a slot has 1 to 8 functions"),
    ({"function": [A] * 9}, "a slot has 1 to 8 functions"),
    ({"function": [A, 7]}, "function 1 is not a table"),
    ({"function": [A], "pol": "1M"}, "a slot has no key 'pol'; it has pool, "),
    ({"function": [A | {"imgae": 1}]}, "function 0 has no key 'imgae'"),
    ({"function": [{"socket": "a"}]}, "function 0: no image: a blk device needs one"),
    ({"function": [{"image": "a"}]}, "function 0 has no socket"),
    ({"function": [A | {"socket": 7}]}, "function 0: socket must be a string, got 7"),
    ({"function": [A | {"device": "net"}]}, "function 0: device must be blk, got 'net'"),
    ({"function": [A | {"program": "x"}]}, "program must be a list of words"),
    ({"function": [A | {"program": ["x"], "device": "blk"}]}, "both a device and a program"),
    ({"function": [A, B | {"socket": "a.sock"}]}, "functions 0 and 1 both listen on a.sock"),
    ({"function": [A | {"role": "owner"}, B | {"role": "owner"}]}, "functions 0 and 1 both claim to own"),
    ({"function": [A, B | {"role": "sharer"}]}, "function 1 uses a shared pool, but no function owns it"),
    ({"function": [A | {"role": "king"}]}, "function 0: role must be private or owner or sharer, got 'king'"),
    ({"function": [A, B | {"pool": "1M"}], "share": True}, "function 1 uses the pool of another function"),
    ({"function": [A, B], "share": True, "profile": "dmb"}, "profile dmb cannot share a pool.*DMB-V2"),
    ({"function": [A], "profile": "pmb"}, "profile must be swiotlb or dmb, got 'pmb'"),
    (
        {"function": [A], "pool": "3M"},
        "a slot: the pool must be a power of two from 64K to 4G.* got 3M",
    ),
    ({"function": [A], "pool": True}, 'pool must be an integer, or a string such as "16M", got true'),
    ({"function": [A], "pool": "lots"}, "invalid size 'lots'"),
    ({"function": [A], "share": "yes"}, "share must be true or false, got 'yes'"),
    ({"function": [A], "slot": 32}, "invalid slot 32: a bus has slots 0 to 31"),
    ({"function": [A | {"queues": 0}]}, "function 0: Invalid value for '--queues': '?0'? is not in the range"),
    ({"function": [A | {"queues": "many"}]}, "function 0: Invalid value for '--queues'"),
    ({"function": [A | {"queues": [1]}]}, "function 0: queues must be a string, a number, true or false"),
    ({"function": [A | {"read-only": "yes"}]}, "function 0: Option '--read-only' does not take a value"),
    ({"function": [A | {"serial": "a\0b"}]}, "function 0: serial must be a string"),
    ({"function": [A | {"socket": "a\0b"}]}, "function 0: socket: invalid path"),
    ({"function": [A | {"socket": ""}]}, "function 0: socket: invalid path ''"),
    ({"function": [A | {"socket": "\udcff"}]}, r"function 0: socket: the path \\udcff is not UTF-8"),
    ({"function": [A | {"image": "\udcff"}]}, r"function 0: .*the path \\udcff is not UTF-8"),
    ({"function": [{"program": ["x\0"], "socket": "s"}]}, "program must be a list of words"),
    ({"function": [{"program": ["x"], "socket": "s", "pool-users": 3}]}, "function 0 has no key 'pool-users'"),
    ({"function": [{"program": ["x"], "socket": "s", "--json": True}]}, "function 0 has no key '--json'"),
    ({"function": [A], "profile": "dmb", "policy": "hopeful"}, "policy hopeful is not available with profile dmb"),
    ({"function": [A, B | {"socket": "./a.sock"}]}, "functions 0 and 1 both listen on"),
    ({"function": [{"program": ["x"], "socket": "s"}], "processes": "one"}, "cannot be used with program"),
]


@pytest.mark.parametrize(("raw", "why"), WRONG)
def test_what_cannot_be_is_said(raw: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        make_config(raw)


def test_a_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "slot.toml"
    with pytest.raises(Unavailable, match=r"cannot read .*slot\.toml"):
        load_config(path)
    for content, why in (
        (b"[[", "is not valid TOML"),
        (b"\xff", "is not valid TOML"),
        (b"a=" + b"[" * 9999, "is not valid TOML"),
        (b"pool = '3M'", "functions"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=rf"slot\.toml.* {why}"):
            load_config(path)


def test_functions_on_the_command_line() -> None:
    assert parse_function("blk,image=a=b.img,read-only,queues=2") == {
        "device": "blk",
        "image": "a=b.img",
        "read-only": True,
        "queues": "2",
    }
    assert parse_function("blk,image=a,,b=c.img,serial=,,,x")["image"] == "a,b=c.img"
    assert parse_function("blk,image=a,,b=c.img,serial=,,,x") == {
        "device": "blk",
        "image": "a,b=c.img",
        "serial": ",",
        "x": True,
    }
    for text, why in (("blk,image=a,image=b", "image is given twice"), ("blk,=3", "expected KEY"), ("blk,", "got ''")):
        with pytest.raises(UsageError, match=why):
            parse_function(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["function", "pool", "share", "socket", "image", "role", "slot"]), inner)
        ),
        max_leaves=12,
    ).filter(lambda raw: isinstance(raw, dict))
)
def test_nothing_but_an_error_of_ours_comes_of_nonsense(raw: dict[str, Any]) -> None:
    try:
        slot = make_config(raw)
    except UsageError:
        return
    assert 1 <= len(slot.functions) <= 8
