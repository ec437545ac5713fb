"""Times that HDF5 notes in a group when it is changed, taken out again.

Files in HDF5's newer layout can keep in a group's header when it was last changed, and the library
has no way not to: so the same rewards in the same file would give other bytes every time. Object
headers of version 2 are documented in HDF5's file format specification, section IV.A.1.b.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from procreward.optional import H5PY, need
from procreward.relabel._hdf5 import opened

__all__ = ["clear_times", "lookup3"]

_SIGNATURE: Final = b"OHDR\x02"
_FLAGS_AT: Final = 5
_TIMES: Final = slice(6, 22)
_HAS_TIMES: Final = 0x20
_HAS_LIMITS: Final = 0x10
_MASK: Final = 0xFFFFFFFF


def clear_times(path: Path) -> int:
    """Set the times in the headers of a file's groups to 0.

    Args:
        path: An HDF5 file that nobody has open.

    Returns:
        How many groups had some.
    """
    with opened(path) as file:
        base = file.userblock_size
        places = [base + place for place in _group_headers(file)]
    cleared = 0
    with path.open("r+b") as handle:
        for place in sorted(set(places)):
            handle.seek(place)
            header = bytearray(handle.read(64))
            if not header.startswith(_SIGNATURE) or not header[_FLAGS_AT] & _HAS_TIMES:
                continue
            handle.seek(place)
            header = bytearray(handle.read(_length(header)))
            header[_TIMES] = bytes(16)
            handle.seek(place)
            handle.write(header + lookup3(bytes(header)).to_bytes(4, "little"))
            cleared += 1
    return cleared


def _group_headers(file: Any) -> list[int]:
    h5py = need(H5PY)
    found = [h5py.h5o.get_info(file.id).addr]

    def note(_: str, member: Any) -> None:
        if isinstance(member, h5py.Group):
            found.append(h5py.h5o.get_info(member.id).addr)

    file.visititems(note)
    return [int(place) for place in found]


def _length(header: bytes | bytearray) -> int:
    """Return how long a header's first part is, its checksum not counted."""
    flags = header[_FLAGS_AT]
    start = _TIMES.stop + (4 if flags & _HAS_LIMITS else 0)
    width = 1 << (flags & 3)
    return start + width + int.from_bytes(header[start : start + width], "little")


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _MASK


def lookup3(data: bytes) -> int:
    """Return Bob Jenkins' lookup3 hash with initial value 0, which HDF5 uses as a checksum.

    Example:
        >>> hex(lookup3(b"Four score and seven years ago"))
        '0x17770551'
    """
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    whole = max(len(data) - 1, 0) // 12 * 12
    padded = data + bytes(-len(data) % 12)
    words = [int.from_bytes(padded[at : at + 4], "little") for at in range(0, len(padded), 4)]
    for at in range(0, whole // 4, 3):
        a, b, c = (a + words[at]) & _MASK, (b + words[at + 1]) & _MASK, (c + words[at + 2]) & _MASK
        a, c = (a - c) & _MASK ^ _rotated(c, 4), (c + b) & _MASK
        b, a = (b - a) & _MASK ^ _rotated(a, 6), (a + c) & _MASK
        c, b = (c - b) & _MASK ^ _rotated(b, 8), (b + a) & _MASK
        a, c = (a - c) & _MASK ^ _rotated(c, 16), (c + b) & _MASK
        b, a = (b - a) & _MASK ^ _rotated(a, 19), (a + c) & _MASK
        c, b = (c - b) & _MASK ^ _rotated(b, 4), (b + a) & _MASK
    if not data:
        return c
    rest = words[whole // 4 :]
    a, b, c = (a + rest[0]) & _MASK, (b + rest[1]) & _MASK, (c + rest[2]) & _MASK
    c = ((c ^ b) - _rotated(b, 14)) & _MASK
    a = ((a ^ c) - _rotated(c, 11)) & _MASK
    b = ((b ^ a) - _rotated(a, 25)) & _MASK
    c = ((c ^ b) - _rotated(b, 16)) & _MASK
    a = ((a ^ c) - _rotated(c, 4)) & _MASK
    b = ((b ^ a) - _rotated(a, 14)) & _MASK
    return ((c ^ b) - _rotated(b, 24)) & _MASK
