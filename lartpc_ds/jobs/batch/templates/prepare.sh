cd @folder@ || exit

# What starts lartpc-ds; the prologue may say otherwise: lartpc_ds=(lartpc-ds) takes what it puts on PATH.
lartpc_ds=(@command@)

# batch.prologue; before `set -u`, which many activation scripts do not survive
@prologue@

set -u
run_dir=@run_dir@
hostfile=$(mktemp) || exit
trap 'rm -f "$hostfile"' EXIT
"${lartpc_ds[@]}" hostfile make --from @system@ --slots @slots@ >"$hostfile" || exit

set -- train @arguments@ --hostfile "$hostfile"@launcher@ --run-dir "$run_dir"
if [ -e "$run_dir/job.json" ] || [ -n "$(ls -d "$run_dir"/checkpoints/step_* 2>/dev/null)" ]; then
    # written last when a run is prepared: from there on it can be resumed, with or without a checkpoint; where it is
    # lost but a checkpoint is there, train says so, which is better than a start from nothing
    set -- "$@" --resume
elif [ -n "$(ls -A "$run_dir" 2>/dev/null)" ]; then
    # the job was killed while it prepared the run: nothing in it can be resumed
    mv "$run_dir" "$run_dir.unfinished-$(date +%Y%m%d-%H%M%S)" || exit
fi
