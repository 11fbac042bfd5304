"""Where the HTTP server listens, as somebody writes it: `[HOST:]PORT`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from shared.errors import ConfigurationError

HTTP_FORM = "[HOST:]PORT"
LOOPBACK = "127.0.0.1"
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """An address to listen on; port 0 stands for any that is free."""

    port: int
    host: str = LOOPBACK

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `8080`, `0.0.0.0:8080`, `[::]:8080` or `pi.local:8080`.

        Raises:
            ConfigurationError: it is none of these.
        """
        host, colon, port = text.strip().rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise _refused(text)
        if not colon:
            return cls(int(port))
        if ":" in bare if bare == host else not _is_ip(bare):
            raise _refused(text)  # IPv6 stands in brackets, and nothing else does
        if not _is_ip(bare) and not _HOST_NAME.fullmatch(bare):
            raise _refused(text)
        return cls(int(port), bare)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        return _is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback

    @property
    def url(self) -> str:
        """What somebody on this machine types into a browser."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _refused(text: str) -> ConfigurationError:
    return ConfigurationError(
        "no address to listen on",
        expected=f"{HTTP_FORM}, as in 8080, 0.0.0.0:8080 or [::]:8080",
        got=text,
    )
