"""What srun starts: DeepSpeed's slurm runner knows scripts only, and leaves `--module` out."""

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as `python -m` has it: a user's own model may lie there
    from lartpc_ds.training.worker import main

    main()
