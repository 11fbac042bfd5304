"""Where the HTTP server listens, as it is written."""

from __future__ import annotations

import pytest

from orchestrator.web.address import HttpAddress
from shared.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback", "url"),
    [
        ("8080", "127.0.0.1", 8080, True, "http://127.0.0.1:8080/"),
        ("0", "127.0.0.1", 0, True, "http://127.0.0.1:0/"),
        ("localhost:81", "localhost", 81, True, "http://localhost:81/"),
        ("0.0.0.0:8080", "0.0.0.0", 8080, False, "http://127.0.0.1:8080/"),
        ("[::]:8080", "::", 8080, False, "http://[::1]:8080/"),
        ("[::1]:8080", "::1", 8080, True, "http://[::1]:8080/"),
        ("pi.local:8080", "pi.local", 8080, False, "http://pi.local:8080/"),
    ],
)
def test_what_is_written_is_what_is_meant(
    text: str, host: str, port: int, loopback: bool, url: str
) -> None:
    address = HttpAddress.parse(text)
    assert (address.host, address.port) == (host, port)
    assert address.is_loopback is loopback
    assert address.url == url
    assert HttpAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http",
        "65536",
        "-1",
        "\u0661",
        ":80",
        "::1:80",
        "[pi]:80",
        "[::1]",
        "a/b:80",
        "http://x:80",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"as in 8080"):
        HttpAddress.parse(text)
