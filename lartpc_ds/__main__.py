"""`python -m lartpc_ds` is `lartpc-ds`."""

from lartpc_ds.cli import main

main()
