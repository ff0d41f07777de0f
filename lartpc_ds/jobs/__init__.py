"""From a run folder to ranks that run, on one machine or on many hosts."""
