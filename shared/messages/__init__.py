"""What travels: one frozen dataclass per message, one module per noun.

Messages between our own parts carry `v`; an unknown version is refused by the decoder, unknown extra fields
are ignored. The shapes that clients see (`Answer`, `ErrorAnswer`) carry none and only grow.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

Version = Literal[1]
Ratio = Annotated[float, Meta(ge=0, le=1e18)]
"""A finite number >= 0; NaN fails the comparison and is refused."""
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""Beyond 64 bits a number can neither be sent on nor become a float."""
Term = Annotated[int, Meta(ge=0, le=2**53)]
"""A leader's number; readers of JSON may not hold larger ones exactly."""
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
"""Up to thirty years: finite, and so are sums of them."""
Positive = Annotated[float, Meta(gt=0, le=1e18)]
# Not `$`, which also stands before a line's end: a name becomes a level of a topic.
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
Key = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""32 bytes in hexadecimal."""
