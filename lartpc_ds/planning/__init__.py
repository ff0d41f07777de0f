"""What a layout needs in memory and time, without running it."""
