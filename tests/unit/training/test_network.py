import socket

import psutil
import pytest

from lartpc_ds.errors import UserError
from lartpc_ds.training.network import interface_towards, own_addresses


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.1", "localhost"])
def test_loopback_leads_to_itself(address: str) -> None:
    assert interface_towards(address) == "lo"


def test_an_own_address_is_on_the_interface_that_bears_it() -> None:
    interfaces = psutil.net_if_addrs()
    for address in own_addresses():
        borne = {entry.address for entry in interfaces[interface_towards(address)]}
        assert address in borne


def test_own_addresses_end_with_loopback() -> None:
    addresses = own_addresses()
    assert addresses[-1].startswith("127.") and len(set(addresses)) == len(addresses)
    assert all(not address.startswith("127.") for address in addresses[:-1])


def test_an_unknown_name_or_a_missing_route_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no-such-host\.invalid: this machine has no way there"):
        interface_towards("no-such-host.invalid")
    monkeypatch.setattr(psutil, "net_if_addrs", dict)
    with pytest.raises(UserError, match="no interface bears"):
        interface_towards("127.0.0.1")


def test_the_choice_follows_the_route_not_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class Routed:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> "Routed":
            return self

        def __exit__(self, *_: object) -> None: ...
        def connect(self, place: tuple[str, int]) -> None:
            assert place[0] == "10.9.0.7"

        def getsockname(self) -> tuple[str, int]:
            return "10.9.0.1", 4000

    entry = type("Entry", (), {})
    table = {}
    for name, address in (("lo", "127.0.0.1"), ("eth0", "10.1.0.1"), ("ib0", "10.9.0.1")):
        table[name] = [entry()]
        table[name][0].family, table[name][0].address = socket.AF_INET, address
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: table)
    monkeypatch.setattr(socket, "socket", Routed)
    assert interface_towards("10.9.0.7") == "ib0"
