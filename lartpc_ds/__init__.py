"""lartpc-ds: DeepSpeed training of convolutional networks on whole liquid-argon TPC events."""

__version__ = "0.1.0"
