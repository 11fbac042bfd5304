"""What is fuzzed: a decoder with the errors that it may raise, and bytes to begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One decoder, or several that are told apart by the first byte.

    `covers` names the public functions that it calls, as `module.function`; `share` is how many of a run's
    inputs it gets beside the others' shares: less for what is slow.
    """

    name: str
    decode: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]
    seeds: Callable[[int], list[bytes]]
    """Bytes to begin with, the same for the same seed."""
    covers: tuple[str, ...]
    share: float = 1.0
    guided: bool = True
    """Whether it is Python, where coverage can guide."""

    def try_one(self, data: bytes) -> Exception | None:
        """Decode `data`; an error that is not allowed, or None."""
        try:
            self.decode(data)
        except self.allowed:
            return None
        except Exception as error:  # noqa: BLE001 - exactly this is what is looked for
            return error
        return None
