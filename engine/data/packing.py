"""How documents are put into sequences, by their sizes alone: for a job's rows, and for what is foretold of them.

The rule: the bins are a pure function of the sizes, so that a resumed run has those of the run before it.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def pack(sizes: Sequence[int], seq_len: int) -> list[list[int]]:
    """Put documents of these sizes into sequences of at most `seq_len` tokens: best fit, longest first."""
    bins: list[list[int]] = []
    open_bins: list[tuple[int, int]] = []  # (room left, index), sorted
    for number in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        size = sizes[number]
        place = bisect.bisect_left(open_bins, (size, -1))
        if place < len(open_bins):
            room, index = open_bins.pop(place)
        else:
            room, index = seq_len, len(bins)
            bins.append([])
        bins[index].append(number)
        if room - size > 1:
            bisect.insort(open_bins, (room - size, index))
    return bins
