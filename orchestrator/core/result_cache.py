"""The paper's result cache: an input that was answered before is answered again without being run.

One per model that asks for it (`ModelServed.cache`). It is bounded by number, bytes and age; the least
recently used goes. Of equal inputs that are there at once one is run (`equal_items`).

What equal means is the shell's business: a key is a digest over the input and the form of the answer, and the
name of the package and the options that it was keyed for (`identity`). What a pipeline of another package
makes of an item is not kept, so that nothing of an old model answers for a new one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from orchestrator.core.dispatch_events import Output

ENTRY_BYTES: Final = 1024
"""What an entry takes beside its tensors: key, labels, stage times."""
LEAST_BYTES: Final = 16 * ENTRY_BYTES
"""Less is a slip."""
MAX_ENTRIES: Final = 100_000
DEFAULT_BYTES: Final = 64 * 1024 * 1024
DEFAULT_KEEP_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class CacheKey:
    """`digest` of an input, as asked of the package and options that `identity` names."""

    identity: str
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Whose answers are kept, how many bytes of them, and for how many seconds."""

    identity: str
    max_bytes: int = DEFAULT_BYTES
    max_entries: int = MAX_ENTRIES
    keep_s: float = DEFAULT_KEEP_S


@dataclass(frozen=True, slots=True)
class Cached:
    """An output, and the pipeline that made it."""

    output: Output
    pipeline: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLoad:
    """What the cache did since its model was served, in inputs; and what it holds.

    `hits` were answered from it, `joined` by an equal input that was under way, `misses` were run.
    """

    hits: int
    joined: int
    misses: int
    entries: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    cached: Cached
    size_bytes: int
    expires_at: float


def check_cache(cache_bytes: int, max_error: float) -> None:
    """Refuse to keep answers where equal inputs may have different ones, or where none has room.

    Raises:
        ConfigurationError: rounding between stages is allowed, which each plan does elsewhere; or too few
            bytes.
    """
    if 0 < cache_bytes < LEAST_BYTES:
        raise ConfigurationError(
            "a cache of this size keeps nothing",
            expected=f"--cache off, or {LEAST_BYTES} bytes or more",
            got=str(cache_bytes),
        )
    if cache_bytes and max_error > 0.0:
        raise ConfigurationError(
            "answers cannot be kept where rounding between stages may change them from plan to plan",
            expected="--cache off, or --max-error 0",
            got=f"a cache, and --max-error {max_error:g}",
        )


class ResultCache:
    """Outputs by key. `get` and `put` are O(1)."""

    __slots__ = ("_entries", "hits", "joined", "misses", "settings", "size_bytes")

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self.hits = self.joined = self.misses = 0
        self.size_bytes = 0
        self._entries: OrderedDict[CacheKey, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: CacheKey, now: float) -> Cached | None:
        """The output kept less than `keep_s` ago; it is the most recently used then."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry.expires_at:
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return entry.cached

    def put(self, key: CacheKey, cached: Cached, now: float) -> None:
        """Keep an output from `now` on; one that alone is more than may be kept is not."""
        settings = self.settings
        size_bytes = ENTRY_BYTES + cached.output.size_bytes
        if size_bytes > settings.max_bytes:
            return
        self._forget(key)
        self._entries[key] = _Entry(cached, size_bytes, now + settings.keep_s)
        self.size_bytes += size_bytes
        while len(self._entries) > settings.max_entries or self.size_bytes > settings.max_bytes:
            self._forget(next(iter(self._entries)))

    def load(self) -> CacheLoad:
        return CacheLoad(
            hits=self.hits,
            joined=self.joined,
            misses=self.misses,
            entries=len(self._entries),
            size_bytes=self.size_bytes,
        )

    def _forget(self, key: CacheKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= entry.size_bytes
