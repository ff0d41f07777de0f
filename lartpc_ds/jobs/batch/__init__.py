"""Job scripts for Slurm, LSF and PBS."""
