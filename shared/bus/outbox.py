"""How much was published and is not yet acknowledged: the bound on what a client keeps."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.errors import BrokerUnreachableError


@dataclass(slots=True)
class Outbox:
    """Accounts for publications of QoS 1, by packet identifier.

    One message is always taken, so that a single large one passes.
    """

    limit_messages: int
    limit_bytes: int
    _sizes: dict[int, int] = field(default_factory=dict)
    _bytes: int = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def check_room(self, size_bytes: int) -> None:
        """Raise where one more of this size would be too much.

        Raises:
            BrokerUnreachableError: the broker has left too much unacknowledged.
        """
        if not self._sizes:
            return
        if len(self._sizes) >= self.limit_messages or self._bytes + size_bytes > self.limit_bytes:
            raise BrokerUnreachableError(
                "the broker does not acknowledge what was published",
                expected=f"at most {self.limit_messages} messages of {self.limit_bytes} bytes "
                "in all waiting for it",
                got=f"{len(self._sizes)} of {self._bytes} bytes, and one more of {size_bytes}",
            )

    def add(self, packet_id: int, size_bytes: int) -> None:
        """Published, not acknowledged."""
        self._sizes[packet_id] = size_bytes
        self._bytes += size_bytes

    def remove(self, packet_id: int) -> int | None:
        """Acknowledged; its size, or None when it was not in here."""
        size_bytes = self._sizes.pop(packet_id, None)
        if size_bytes is not None:
            self._bytes -= size_bytes
        return size_bytes
