"""Lengths to rows of one size: best fit, the longest first.

What has these lengths is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import OptionError

__all__ = ["pack"]


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows of places in `lengths`, each place in one row, and no row's sum above `room`.

    Each length goes, the longest first, to the fullest row that still takes it: at most 11/9 of the fewest rows there
    can be, and 6/9 of one. Equal lengths keep their order, so how many rows there are and how full they get depends
    on the lengths alone. Raises OptionError for a length below 1 or above the room.
    """
    _check(lengths, room)
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(room + 1)]  # rows by what is left in them
    some = 0  # bit r is set where by_room[r] is not empty
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        length = lengths[place]
        if fits := some >> length:
            left = length + (fits & -fits).bit_length() - 1  # the lowest bit
            row = by_room[left].pop()
            some ^= (not by_room[left]) << left
            rows[row].append(place)
        else:
            left, row = room, len(rows)
            rows.append([place])
        by_room[left - length].append(row)
        some |= 1 << (left - length)
    return rows


def _check(lengths: Sequence[int], room: int) -> None:
    for place, length in enumerate(lengths):
        if not 1 <= length <= room:
            raise OptionError(
                f"Rows of {room} take lengths of 1 to {room}; number {place} has {length}. Split it or leave it out."
            )
