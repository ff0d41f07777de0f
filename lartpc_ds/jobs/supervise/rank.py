"""The script that srun starts on every rank: DeepSpeed's runner for Slurm starts scripts only, and no `--module`."""

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as with `python -m`: the model of a user may lie there
    from lartpc_ds.training.worker import main

    main()
