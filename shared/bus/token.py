"""A credential bundle as one string: where the broker is, who vouches for it, and how to log in.

`amp4ec1.` and base64url of a small JSON document. Wherever a broker's address is asked for, a token will do,
and so will `@FILE` with an address or a token inside: a command line is readable by others on the machine, a
file need not be.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

from shared.codec import decode_json, encode_json
from shared.errors import ConfigurationError, ProtocolError

PREFIX = "amp4ec1."
_LONGEST = 16_384
"""Characters; a bundle has about 1,200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a token says; `ca` is the PEM text of the one authority to trust."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    ca: str


def encode_token(bundle: Bundle) -> str:
    """The token's text, secret included."""
    return PREFIX + base64.urlsafe_b64encode(encode_json(bundle)).decode().rstrip("=")


def decode_token(text: str) -> Bundle:
    """Read a token's text.

    Raises:
        ConfigurationError: it is none, or damaged. The message never repeats it.
    """
    if not text.startswith(PREFIX) or len(text) > _LONGEST:
        raise ConfigurationError(
            "not a join token", expected=f"{PREFIX}...", got=f"{len(text)} characters"
        )
    body = text.removeprefix(PREFIX)
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        return decode_json(data, Bundle)
    except (binascii.Error, ProtocolError):
        raise ConfigurationError(
            "a damaged join token", expected="all of it, as it was issued", got="something else"
        ) from None
