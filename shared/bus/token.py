"""A credential bundle as one string: where the broker is, who vouches for it, a login, and keys.

`amp4ec1.` and base64url of a small JSON document. Wherever a broker's address is asked for, a token will do,
and so will `@FILE` with an address or a token inside: a command line is readable by others on the machine, a
file need not be.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from shared.codec import decode_json, encode_json
from shared.errors import ConfigurationError, ProtocolError

PREFIX = "amp4ec1."
_LONGEST = 16_384
"""Characters; a bundle has 1,300 to 2,200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a holder checks signatures with and, where its role is to sign, signs with; bytes as hex.

    `authority` is the public key that vouches for signers. `key` and `certificate` are the holder's private
    key and, as JSON, what the authority says of it (`shared.signing`); `secret` is what an orchestrator
    derives the keys of pipelines from (`shared.pipeline_mac`).
    """

    authority: str
    key: str | None = field(default=None, repr=False)
    certificate: str | None = None
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a token says; `ca` is the PEM text of the one TLS authority to trust.

    `credentials` are missing in tokens made before there were any.
    """

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    ca: str
    credentials: Credentials | None = None


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
    except (ValueError, ProtocolError):  # ValueError: not base64, or letters beyond ASCII
        raise ConfigurationError(
            "a damaged join token", expected="all of it, as it was issued", got="something else"
        ) from None
