"""Plain single-device networks as flat sequences of blocks; parallelism is applied from outside, never here."""
