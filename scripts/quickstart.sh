#!/usr/bin/env bash
# The main job on its embedded default: set up, train on simulated ArgoNeuT-like events, train a hundred steps on whole
# MicroBooNE events where memory allows, and print what came out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

now=$(date +%Y%m%d-%H%M%S)
runs=("runs/quickstart-$now")
.venv/bin/lartpc-ds train quickstart --devices 2 --run-dir "${runs[0]}"

needed_gib=4
free_gib=$(awk '/^MemAvailable:/ {print int($2 / 1024 / 1024)}' /proc/meminfo)
if ((free_gib >= needed_gib)); then
    runs+=("runs/whole-event-$now")
    # a hundred events teach a network little: this shows what an event costs where only what is lit is computed
    .venv/bin/lartpc-ds train microboone-full --devices 1 --run-dir "${runs[1]}" --set data.simulate.events=125 \
        --set train.max_steps=100 --set train.epochs=2 --set data.isolated=3 --set memory.lit_block=auto
else
    echo "Skipped the whole MicroBooNE events: $free_gib GiB of memory are free, $needed_gib GiB are needed."
fi
.venv/bin/lartpc-ds report "${runs[@]}"
