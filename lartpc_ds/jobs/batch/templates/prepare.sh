cd @folder@ || exit

# The command that starts lartpc-ds. The prologue may change it: lartpc_ds=(lartpc-ds) takes the one on PATH.
lartpc_ds=(@command@)

# The lines of batch.prologue come before `set -u`, with which many activation scripts fail.
@prologue@

set -u
run_dir=@run_dir@
hostfile=$(mktemp) || exit
trap 'rm -f "$hostfile"' EXIT
"${lartpc_ds[@]}" hostfile make --from @system@ --slots @slots@ >"$hostfile" || exit

set -- train @arguments@ --hostfile "$hostfile"@launcher@ --run-dir "$run_dir"
if [ -e "$run_dir/job.json" ] || [ -n "$(ls -d "$run_dir"/checkpoints/step_* 2>/dev/null)" ]; then
    # job.json is written last when a run is prepared, so the run can be resumed, with or without a checkpoint; where it
    # is lost but there is a checkpoint, train says so, which is better than a start from nothing
    set -- "$@" --resume
elif [ -n "$(ls -A "$run_dir" 2>/dev/null)" ]; then
    # the job was killed while it prepared the run: nothing in it can be resumed
    mv "$run_dir" "$run_dir.unfinished-$(date +%Y%m%d-%H%M%S)" || exit
fi
