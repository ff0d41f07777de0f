#!/usr/bin/env bash
# Makes .venv with the pinned versions; does nothing when pyproject.toml and constraints.txt are what it was made from.
# LARTPC_DS_PYTHON names the interpreter to make it with (default: the newest python3 >= 3.11 on the PATH).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() { echo "setup: $1" >&2; exit 2; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    if [[ -n ${LARTPC_DS_PYTHON:-} ]]; then
        new_enough "$LARTPC_DS_PYTHON" || stop "LARTPC_DS_PYTHON=$LARTPC_DS_PYTHON is not a Python >= 3.11"
        echo "$LARTPC_DS_PYTHON"
        return
    fi
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if new_enough "$name"; then echo "$name"; return; fi
    done
    stop "no Python >= 3.11 found; apt-get install python3 python3-venv, or name one in LARTPC_DS_PYTHON"
}

stamp=.venv/lartpc-ds-stamp
made_from="$PWD $(cat pyproject.toml constraints.txt | sha256sum)"
if [[ -f $stamp && $(<"$stamp") == "$made_from" ]]; then exit 0; fi

# An environment does not survive its interpreter or a move of its folder: its scripts name both by path.
moved=false
if [[ -f $stamp && $(<"$stamp") != "$PWD "* ]]; then moved=true; fi
if $moved || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        stop "$python cannot make environments; apt-get install python3-venv, or name another in LARTPC_DS_PYTHON"
    "$python" -m venv --clear .venv
fi
echo "setup: installing the pinned versions into .venv (half a minute, plus the download the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 -c constraints.txt -e '.[dev]'
echo "$made_from" >"$stamp"
