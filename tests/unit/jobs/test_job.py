import os
import signal

import pytest

from lartpc_ds.jobs.supervise.job import _StopRequests


@pytest.mark.parametrize(
    ("signals", "count"),
    [
        ([], 0),
        ([signal.SIGUSR1], 1),
        ([signal.SIGUSR1, signal.SIGUSR1], 1),
        ([signal.SIGTERM, signal.SIGUSR1], 1),
        ([signal.SIGUSR1, signal.SIGTERM], 1),
        ([signal.SIGTERM, signal.SIGINT], 2),
        ([signal.SIGINT, signal.SIGUSR1, signal.SIGINT], 2),
    ],
)
def test_what_a_batch_system_and_its_script_send_is_one_request(signals: list[signal.Signals], count: int) -> None:
    with _StopRequests() as stops:
        for number in signals:
            os.kill(os.getpid(), number)
    assert stops.count == count
