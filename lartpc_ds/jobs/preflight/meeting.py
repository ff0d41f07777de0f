"""The address of the first host at which the ranks of a job meet, and the interface of each host towards it.

Ranks get a numerical address and not a name: a name may mean another address on each host, and on the host itself it is
often a loopback address (Debian's installer writes 127.0.1.1). So the other hosts are asked, and the address that they
see must be one that the first host has.
"""

from collections.abc import Mapping, Sequence

from lartpc_ds.jobs.hosts.faults import Fault
from lartpc_ds.jobs.hosts.hostfile import Host
from lartpc_ds.jobs.preflight.probe import Answer

__all__ = ["interface_of", "master_address"]


def master_address(hosts: Sequence[Host], answers: Mapping[str, Answer]) -> tuple[str | None, list[Fault]]:
    """An address at which the other hosts reach the first one, and the faults of the ways there."""
    first = hosts[0].name
    own = [address for addresses in answers[first]["interfaces"].values() for address in addresses]
    seen = {host.name: answers[host.name]["first_addresses"] for host in hosts}
    if len(hosts) == 1:
        alone = [*seen[first], *own, "127.0.0.1"]
        return next(address for address in alone if address in own or address.startswith("127.")), []
    faults = []
    votes: dict[str, int] = {}
    for host in hosts[1:]:
        usable = [address for address in seen[host.name] if address in own and not address.startswith("127.")]
        if usable:
            votes[usable[0]] = votes.get(usable[0], 0) + 1
        else:
            faults.append(
                Fault(
                    host.name,
                    "name",
                    f"{first!r} resolves to {', '.join(seen[host.name])} there, and {first} itself has "
                    f"{', '.join(own)}",
                    f"correct the entry of {first} in DNS or in /etc/hosts there",
                )
            )
    chosen = max(votes, key=lambda address: votes[address], default=None)
    for host in hosts[1:]:
        if chosen is not None and interface_of(answers[host.name], answers[host.name]["source"]) in (None, "lo"):
            faults.append(
                Fault(
                    host.name,
                    "interface",
                    f"it has no network interface towards {first} ({answers[host.name]['source']})",
                    f"check its routes: ip route get {chosen}",
                )
            )
    return chosen, faults


def interface_of(answer: Answer, address: str) -> str | None:
    """The interface of the host that has an address; `lo` for all of 127/8."""
    if address.startswith("127."):
        return "lo"
    return next((name for name, borne in answer["interfaces"].items() if address in borne), None)
