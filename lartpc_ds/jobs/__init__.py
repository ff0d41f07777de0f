"""How ranks are started from a run folder and supervised, on one machine or on many hosts."""
