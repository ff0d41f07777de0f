#!/bin/bash
# Written by `lartpc-ds submit`; yours to edit.
#SBATCH --job-name=@name@
#SBATCH --output=@name@-%j.log
# a requeued job goes on in the same log
#SBATCH --open-mode=append
#SBATCH --requeue
# the signal comes this many seconds before the time is over, to this script alone
#SBATCH --signal=B:USR1@@signal_seconds@
@directives@

@prepare@

@run@

# 75: stopped early, with a checkpoint to go on from. Not after SIGTERM: `scancel --batch --signal=TERM JOB` saves and
# cancels, `--signal=USR1` saves and requeues. Slurm would requeue even a job that it is ending, by scancel or by its time
# limit, so the script also asks for the state.
if [ "$code" -eq 75 ] && [ "$asked" != TERM ]; then
    case $(scontrol show job "$SLURM_JOB_ID") in
        *JobState=RUNNING*) scontrol requeue "$SLURM_JOB_ID" ;;
    esac
fi
exit "$code"
