#!/bin/bash
# Written by `lartpc-ds submit`; yours to edit.
#BSUB -J @name@
#BSUB -o @name@-%J.log
# after a host's failure, and after exit code 75 (stopped early, with a checkpoint), LSF queues the job again
#BSUB -r
#BSUB -Q "75"
@directives@

@prepare@

@run@

# bkill first sends a signal, on which train saves and exits with 75; the job must stay killed nevertheless
if [ "$code" -eq 75 ] && [ "$asked" = TERM ]; then
    code=143
fi
exit "$code"
