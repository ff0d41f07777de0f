"""Reader processes that live and die with their rank, whatever a batch system signals.

A batch system's stop request goes to every process of a job. The rank then saves a checkpoint, and for this it needs
what its readers still have to give. So readers start with these signals blocked. Their fork server starts so, and hands
its mask to all processes that it forks. Rejected: a handler that is set when a reader starts, because the server itself
and a reader's first second would stay open to signals. Readers end by torch's own event, or with the rank
(lartpc_ds/data/processes.py). A reader that does not end is killed, because it would not hear Python's SIGTERM.
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
        """End a reader that has not ended by itself; torch and the end of Python call this."""
        self.kill()


class _Reader(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:
        return _Popen(process_obj)


class _Readers(ForkServerContext):
    Process = _Reader


def reader_context() -> BaseContext:
    """A context for a DataLoader whose processes hear no stop request.

    They come from a fork server, because a fork would copy the locks of gloo's and OpenMP's threads. While the server
    starts, a few milliseconds, the calling thread hears no stop request either; a signal waits, and none is lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # starting it lifts the block, so not from within the fork server's start
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _Readers()
