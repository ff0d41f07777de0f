#!/usr/bin/env bash
# Sets up, then runs the unprivileged tests; arguments go to pytest: bash scripts/test.sh tests/unit -k layout
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/python -m pytest "$@"
