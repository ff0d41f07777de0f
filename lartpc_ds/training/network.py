"""Which network interface leads where, on this machine.

The routing table is asked, through a UDP socket that sends nothing, instead of a list of likely names (`eth0`, `ib0`):
on a machine with several networks only the route knows. Gloo would otherwise take the interface of the host's own name,
which on Debian is loopback, and no other host can reach that. IPv4 only, as gloo's and DeepSpeed's addresses are here.
"""

import socket

import psutil

from lartpc_ds.errors import UserError

__all__ = ["interface_towards", "is_this_machine", "own_addresses"]


def interface_towards(address: str) -> str:
    """Name of the interface by which this machine reaches `address`, a number or a name.

    For an address of this machine it is the interface that bears it; for loopback `lo`.

    Raises:
        UserError: the name does not resolve, or no route leads there.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # any port does: connecting a UDP socket only looks up the route
            own = probe.getsockname()[0]
    except OSError as error:
        raise UserError(f"{address}: this machine has no way there ({error}); check its network and the name") from None
    if own.startswith("127."):
        own = "127.0.0.1"  # the whole of 127/8 is loopback's, which bears one address
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family == socket.AF_INET and entry.address == own for entry in addresses):
            return str(name)
    raise UserError(f"{address}: this machine would send from {own}, which no interface bears; check its network")


def own_addresses() -> tuple[str, ...]:
    """IPv4 addresses of this machine; loopback last."""
    found = [
        entry.address
        for addresses in psutil.net_if_addrs().values()
        for entry in addresses
        if entry.family == socket.AF_INET
    ]
    return tuple(sorted(dict.fromkeys(found), key=lambda address: address.startswith("127.")))


def is_this_machine(name: str) -> bool:
    """Does a host's name mean this machine? False where it does not resolve."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET)
    except (OSError, UnicodeError):
        return False
    return all(str(address[0]).startswith("127.") or address[0] in own_addresses() for *_, address in found)
