#!/usr/bin/env bash
# Sets up, then runs the unprivileged tests, on every core; arguments go to pytest:
#     bash scripts/test.sh --quick                         # the unit tests without those marked slow; must come first
#     bash scripts/test.sh tests/unit -k layout
#     bash scripts/test.sh --hypothesis-profile nightly    # every property test with all its examples
#     bash scripts/test.sh -n 0 -x                         # in one process, which debuggers need
# Tests of one file stay together, because some share what is slow to make. Files go out in the order of their paths,
# long integration tests first and short unit tests last, so that every core is busy to the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
if [[ ${1-} == --quick ]]; then set -- -m "not hosts and not slow" tests/unit "${@:2}"; fi
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
