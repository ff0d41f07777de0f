"""`python -m lartpc_ds` does what `lartpc-ds` does."""

from lartpc_ds.commands.cli import main

main()
