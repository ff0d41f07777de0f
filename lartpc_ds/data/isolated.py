"""Isolated pixels: lit ones with few lit ones around them, which is what noise alone looks like.

A particle lights pixels next to each other, and a lone noise hit stands by itself. Every lone hit lights a window of
each feature map, so a few of them light a whole map up. Neighbours are counted on the sorted flat indices of the lit
pixels, because an event has some 10^5 of them and its image has 10^8. Rejected: an average pool of the dense image,
which costs several images of memory, and which a tile can only run after it has asked its neighbours for their pixels.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["REACH", "WINDOW", "isolated"]

REACH = 2
"""The number of rows, and of columns, on either side of a pixel in which its neighbours are counted."""

WINDOW = (2 * REACH + 1) ** 2
"""The number of pixels of the window, and so the largest possible count."""


def isolated(flat: NDArray[np.int64], num_cols: int, fewest: int) -> NDArray[np.bool_]:
    """Which lit pixels have fewer than `fewest` lit pixels in the 5 x 5 window around them, themselves included.

    `flat` has the ascending C-order indices of all lit pixels of one plane into an image of `num_cols` columns. There
    is nothing outside of the image.
    """
    # with REACH unused columns after each row, no window reaches the pixels at the other end of the next row
    padded = flat + REACH * (flat // num_cols)
    counts = np.zeros(len(flat), np.int64)
    for rows in range(-REACH, REACH + 1):
        middle = padded + rows * (num_cols + REACH)
        counts += np.searchsorted(padded, middle + REACH, side="right")
        counts -= np.searchsorted(padded, middle - REACH, side="left")
    return counts < fewest
