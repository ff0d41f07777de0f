"""What a step costs in time and in memory, before it runs."""
