#!/bin/bash
# Written by `lartpc-ds submit`; yours to edit. For PBS Professional and OpenPBS; Torque has no select.
#PBS -N @name@
#PBS -j oe
# after a host's failure PBS runs the job again
#PBS -r y
@directives@

@prepare@

# PBS sends SIGTERM when the time is over and a few seconds later (kill_delay of the queue) kills; it gives no warning
@timer@

@run@

# 75: stopped early, with a checkpoint to go on from. Only operators may call qrerun, so the script submits itself again,
# which needs qsub on this host; not after SIGTERM, which is qdel, preemption (PBS requeues by itself) or the end of time.
if [ "$code" -eq 75 ] && [ "$asked" != TERM ]; then
    qsub @script@
fi
exit "$code"
