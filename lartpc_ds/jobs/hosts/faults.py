"""The reason why a host gave no answer, and its remedy, from the messages of ssh or srun.

ssh ends with code 255 in all cases, so only its messages tell them apart; they are those in OpenSSH's sources, which
are never translated.
"""

import shlex
import sys
from dataclasses import dataclass

from lartpc_ds.jobs.hosts.reach import Outcome, Reach

__all__ = ["Fault", "fault_of"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something about a host that the user must mend before a job can start."""

    host: str
    check: str
    """Which check has found it."""
    message: str
    fix: str


# (words in the message of ssh or srun, the check, what they mean, what to do); the first match counts
_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "ssh",
        "the host key differs from the one in known_hosts: the host was set up anew, or another host answers",
        "if that is expected: ssh-keygen -R {host}, then ssh {host} once and confirm the new key",
    ),
    (
        "Host key verification failed",
        "ssh",
        "its host key is not known here, and nobody can be asked during a launch",
        "run ssh {host} once and confirm its key (or ssh-keyscan {host} >> ~/.ssh/known_hosts)",
    ),
    (
        "Permission denied",
        "ssh",
        "ssh asks for a password: no key of yours is accepted there",
        "ssh-copy-id {host}, or load your key into ssh-agent; then ssh -o BatchMode=yes {host} true must work",
    ),
    (
        "Could not resolve hostname",
        "name",
        "ssh cannot resolve the name",
        "check the spelling in the hostfile, DNS and /etc/hosts",
    ),
    (
        "Connection refused",
        "ssh",
        "the host answers, but no sshd listens there",
        "start it there (systemctl start ssh), or set the Port for {host} in ~/.ssh/config",
    ),
    (
        "No route to host",
        "ssh",
        "the host or the network to it is down (no route to host)",
        "check that the host runs and its link is up: ping {host}; else leave it out with --exclude {host}",
    ),
    (
        "Network is unreachable",
        "ssh",
        "this machine has no network that leads to it",
        "check this machine's own links: ip route get {host}",
    ),
    (
        "timed out",
        "ssh",
        "no answer within 10 s: the host or the network to it is down",
        "check that the host runs and its link is up: ping {host}; else leave it out with --exclude {host}",
    ),
    (
        "kex_exchange_identification",
        "ssh",
        "sshd closes the connection before it says who it is",
        "look at sshd's log there; MaxStartups or a hosts.deny entry are the usual reasons",
    ),
    (
        "Requested node configuration is not available",
        "srun",
        "the host is not in this Slurm job",
        "make the hostfile inside the job: lartpc-ds hostfile make --from slurm",
    ),
    (
        "Invalid node name",
        "srun",
        "Slurm knows no host of this name",
        "make the hostfile inside the job: lartpc-ds hostfile make --from slurm",
    ),
)


def fault_of(reach: Reach, host: str, outcome: Outcome) -> Fault:
    """The fault behind a run that gave no answer, in words for the user."""
    if outcome.code in (126, 127) or "No such file or directory" in outcome.err or "Exec format" in outcome.err:
        return Fault(
            host,
            "python",
            f"{sys.executable} does not run there",
            "install the same environment at the same path on every host, or on a file system that all of them share",
        )
    for words, check, message, fix in _FAULTS:
        if words in outcome.err:
            return Fault(host, check, message, fix.format(host=host))
    last = next((line for line in reversed(outcome.err.splitlines()) if line.strip()), "")
    if outcome.timed_out:
        what = "it answered and then went silent" if outcome.lines else "it took the connection and never answered"
        return Fault(host, reach.name, f"{what}: {last or 'no message'}", f"try by hand: {reach.name} {host} hostname")
    return Fault(
        host,
        reach.name,
        f"{reach.name} ended with code {outcome.code}: {last or 'no message'}",
        f"try by hand: {shlex.join(reach.command(host, ['hostname']))}",
    )
