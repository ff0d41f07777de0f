"""`lartpc-ds plan`: which layout, levers and ZeRO stage to take."""
