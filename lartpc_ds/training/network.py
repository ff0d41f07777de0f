"""Which network interface of this machine leads to an address.

The routing table answers, through a UDP socket that sends nothing. Rejected: a list of likely names (`eth0`, `ib0`),
because on a machine with several networks only the route knows. Gloo would otherwise take the interface of the host's
own name, which on Debian is loopback, and no other host can reach that. Addresses are IPv4, as gloo's and DeepSpeed's
are.
"""

import socket

import psutil

from lartpc_ds.errors import UserError

__all__ = ["interface_towards", "is_this_machine", "own_addresses"]


def interface_towards(address: str) -> str:
    """The name of the interface by which this machine reaches `address`, a number or a name.

    For an address of this machine that is the interface that bears it, and for loopback it is `lo`.

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
    """The IPv4 addresses of this machine, with loopback last."""
    addresses_here = [
        entry.address
        for addresses in psutil.net_if_addrs().values()
        for entry in addresses
        if entry.family == socket.AF_INET
    ]
    return tuple(sorted(dict.fromkeys(addresses_here), key=lambda address: address.startswith("127.")))


def is_this_machine(name: str) -> bool:
    """Whether a host's name means this machine; False where the name does not resolve."""
    try:
        resolved = socket.getaddrinfo(name, None, socket.AF_INET)
    except (OSError, UnicodeError):
        return False
    return all(str(address[0]).startswith("127.") or address[0] in own_addresses() for *_, address in resolved)
