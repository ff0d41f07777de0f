"""From a run folder to living ranks, on one machine or on many hosts."""
