"""What a layout needs in memory and time, without running it; stages of a pipeline are cut here."""
