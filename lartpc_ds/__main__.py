"""`python -m lartpc_ds` is `lartpc-ds`."""

from lartpc_ds.commands.cli import main

main()
