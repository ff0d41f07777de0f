import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.examples import NIGHTLY

settings.register_profile(NIGHTLY)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through torch and all tests again and again: a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_events() -> Path:
    """The folder of the real SBND events: LARTPC_DS_REAL_EVENTS, or shared/data beside the checkout."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LARTPC_DS_REAL_EVENTS", default))
    if not folder.is_dir():
        missing = f"no real events in {folder}; set LARTPC_DS_REAL_EVENTS to the folder of sbnd_2events_larcv3.h5"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)  # a contributor without the files; CI has failed above
    return folder
