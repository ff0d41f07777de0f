"""Reader processes that live and die with their rank, whatever a batch system signals.

A batch system's stop request goes to every process of a job. The rank saves upon it, for which it needs what its
readers still have to give. So they are started with these signals blocked, from their fork server on, which hands its
mask to all that it forks; a handler set when a reader starts would leave the server itself, and a reader's first
second, open. They end by torch's own event, or with the rank (lartpc_ds/data/processes.py); what does not is killed,
where Python would send the SIGTERM that nobody hears.
"""

import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from multiprocessing.popen_forkserver import Popen
from multiprocessing.process import BaseProcess

__all__ = ["reader_context"]

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class _Popen(Popen):
    def terminate(self) -> None:
        """What torch and the end of Python do to a reader that has not ended by itself."""
        self.kill()


class _Reader(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:
        return _Popen(process_obj)


class _Readers(ForkServerContext):
    Process = _Reader


def reader_context() -> BaseContext:
    """For a DataLoader: its processes hear no stop request. A fork would copy the locks of gloo's and OpenMP's threads.

    The thread that calls hears none either for as long as the fork server takes to start, a few milliseconds; a signal
    to the process waits, and none is lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # starting it lifts the block, so not from within the fork server's start
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _Readers()
