"""Mutations from a seed, which no coverage guides."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_INTERESTING = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00",
    # msgpack: arrays, maps and bytes of 4 GB, infinity, NaN, 2**64 - 1
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00", b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", b"[" * 2000, b"\x91" * 2000,
    b"-1", b"1e999", b"9" * 400, b"18446744073709551616", b"null", b"NaN", b"[]", b"{}", b'""',
    b'"\\ud800"', b"\n", b"/", b"+", b"#", b"..", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"1" * 5000,
)  # fmt: skip
_LONGEST = 16_384


def mutations(seeds: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """The seeds as they are, then mutated ones without end; the same for the same seed."""
    chance = random.Random(seed)
    yield from seeds
    pool = list(seeds) or [b""]
    while True:
        data = bytearray(chance.choice(pool))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            _once(chance, data, pool)
        yield bytes(data[:_LONGEST])


def _once(chance: random.Random, data: bytearray, pool: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    span = min(len(data) - at, chance.choice((1, 2, 4, 16, 64)))
    match chance.randrange(7):
        case 0 if data:
            data[at - 1] ^= 1 << chance.randrange(8)
        case 1 if data:
            data[at - 1] = chance.randrange(256)
        case 2:
            data[at:at] = chance.choice(_INTERESTING)
        case 3:
            data[at : at + span] = chance.choice(_INTERESTING)
        case 4:
            del data[at : at + span]
        case 5:
            data[at:at] = data[at : at + span] * chance.choice((1, 2, 50))
        case _:
            other = chance.choice(pool)
            begin = chance.randrange(len(other) + 1)
            data[at:] = other[begin:]
