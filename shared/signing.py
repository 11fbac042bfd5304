"""Signatures of those who may command: made by a signer, checked against the cluster's authority.

A signature is Ed25519 over a domain separator, when it was made, the topic and the payload, so that it holds
for that message alone; the payload stays as it is for whoever reads it. It travels in MQTT 5 user properties:

==================  ==========================================================================
``signer``          JSON `Certificate`: who signed, in which role, vouched for by the authority
``signature``       64 bytes in hexadecimal
``signed_at_ms``    wall time, where it matters (requests)
==================  ==========================================================================

Which topics need whose signature says the topic table (`vouched_by`). Without an authority, on an open
cluster or with a token from before there was one, nothing is checked and nothing signed.

The `cryptography` package is imported when a key is first used: clients carry tokens, too, and need it not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shared.bus.message import Message, Properties
from shared.bus.token import Credentials
from shared.codec import decode_json, encode_json
from shared.cryptography_extra import needs_cryptography
from shared.errors import ConfigurationError, ForgedError, ProtocolError
from shared.messages.signature import Certificate, SignerRole
from shared.topics import TABLE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNER_ROLES: Final[tuple[SignerRole, ...]] = ("orchestrator", "operator")
SIGNED_BY: Final[dict[str, SignerRole]] = {
    spec.name: role for spec in TABLE for role in SIGNER_ROLES if spec.vouched_by == role
}
"""Rows of the topic table that need a signature, and whose."""

_MESSAGE = b"amp4ec message 1\0"
_CERTIFICATE = b"amp4ec certificate 1\0"
_SIGNER, _SIGNATURE, _SIGNED_AT = "signer", "signature", "signed_at_ms"
_MOST_CERTIFICATES = 64
_LONGEST_CERTIFICATE = 1024
_LATEST_MS = 2**53

Sign = Callable[[str, bytes], Properties]
"""Makes the properties that vouch for a payload on a topic."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that held: whose, and when it was made, in ms since 1970, where that was said."""

    by: Certificate
    at_ms: int | None


def certificate_text(name: str, role: SignerRole, key: bytes) -> bytes:
    """What the authority signs to vouch for a public key of 32 bytes. Names have no NUL."""
    return _CERTIFICATE + f"{role}\0{name}\0".encode() + key


def _message_text(topic: str, payload: bytes | bytearray, at_ms: int | None) -> bytes:
    """What a signer signs. The topic's length in front of it says where the payload begins."""
    name = topic.encode()
    at = "" if at_ms is None else str(at_ms)
    return b"".join((_MESSAGE, f"{at}\0{len(name)}\0".encode(), name, payload))


class Signer:
    """Signs in one role.

    Raises:
        ConfigurationError: the token's key cannot be used, or `cryptography` is missing.
    """

    def __init__(self, key: str, certificate: str) -> None:
        with needs_cryptography():
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        try:
            self.certificate = decode_json(certificate, Certificate)
            self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key))
        except (ValueError, ProtocolError) as error:
            raise _damaged() from error
        if self._key.public_key().public_bytes_raw().hex() != self.certificate.key:
            raise _damaged()
        self._certificate = encode_json(self.certificate).decode()

    def sign(self, topic: str, payload: bytes, at_ms: int | None = None) -> Properties:
        """The properties that vouch for `payload` on `topic`; `at_ms` where it must not be believed later."""
        signature = self._key.sign(_message_text(topic, payload, at_ms)).hex()
        user = [(_SIGNER, self._certificate), (_SIGNATURE, signature)]
        if at_ms is not None:
            user.append((_SIGNED_AT, str(at_ms)))
        return Properties(user=tuple(user))


class Verifier:
    """Checks signatures against one authority's public key, 32 bytes in hexadecimal.

    Raises:
        ConfigurationError: that is none, or `cryptography` is missing.
    """

    def __init__(self, authority: str) -> None:
        with needs_cryptography():
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        self._invalid = InvalidSignature
        self._public_key = Ed25519PublicKey.from_public_bytes
        try:
            self._authority = self._public_key(bytes.fromhex(authority))
        except ValueError as error:
            raise _damaged() from error
        self._known: OrderedDict[str, tuple[Certificate, Ed25519PublicKey]] = OrderedDict()

    def check(self, message: Message, role: SignerRole) -> Signed:
        """Who vouches for a message.

        Raises:
            ForgedError: nobody whom the authority knows in that role. `reason` is `unsigned`,
                `unknown_signer`, `wrong_role` or `bad_signature`.
        """
        properties = message.properties
        signer = properties.user_value(_SIGNER)
        signature = properties.user_value(_SIGNATURE)
        if signer is None or signature is None:
            raise ForgedError(
                "unsigned",
                "nobody vouches for it",
                expected=f"the signature of an {role}",
                got="none",
            )
        certificate, key = self._signer(signer)
        if certificate.role != role:
            raise ForgedError(
                "wrong_role",
                "it is signed by somebody who may not say this",
                expected=f"an {role}",
                got=f"{certificate.role} {certificate.name}",
            )
        try:
            at = properties.user_value(_SIGNED_AT)
            at_ms = None if at is None else int(at)
            if at_ms is not None and not 0 <= at_ms <= _LATEST_MS:
                raise ValueError(f"signed at {at_ms} ms")
            text = _message_text(message.topic, message.payload, at_ms)
            key.verify(bytes.fromhex(signature), text)
        except (ValueError, self._invalid):
            raise ForgedError(
                "bad_signature",
                "its signature does not hold",
                expected=f"topic and payload as {certificate.name} signed them",
                got="something else",
            ) from None
        return Signed(certificate, at_ms)

    def _signer(self, text: str) -> tuple[Certificate, Ed25519PublicKey]:
        known = self._known.get(text)
        if known is not None:
            self._known.move_to_end(text)
            return known
        try:
            if len(text) > _LONGEST_CERTIFICATE:
                raise ValueError(f"a certificate of {len(text)} characters")
            certificate = decode_json(text, Certificate)
            raw = bytes.fromhex(certificate.key)
            vouched = certificate_text(certificate.name, certificate.role, raw)
            self._authority.verify(bytes.fromhex(certificate.signature), vouched)
            key = self._public_key(raw)
        except (ValueError, ProtocolError, self._invalid):
            raise ForgedError(
                "unknown_signer",
                "its signer is unknown here",
                expected="a certificate of this cluster's authority",
                got="another, or none",
            ) from None
        # Only what the authority signed gets in here, so strangers cannot push it out.
        self._known[text] = certificate, key
        if len(self._known) > _MOST_CERTIFICATES:
            self._known.popitem(last=False)
        return certificate, key


class Admission:
    """The table's rule for what comes in: checks what needs a signature, lets all else pass.

    Args:
        credentials: of this process's token; without them everything passes.

    Raises:
        ConfigurationError: they are damaged, or `cryptography` is missing.
    """

    def __init__(self, credentials: Credentials | None) -> None:
        self._verifier = None if credentials is None else Verifier(credentials.authority)

    @property
    def closed(self) -> bool:
        """Whether anything is checked."""
        return self._verifier is not None

    def check(self, name: str, message: Message) -> Signed | None:
        """Check a message of the table's row `name`; an empty one, which says nothing, passes.

        Raises:
            ForgedError: nobody vouches for it who may.
        """
        role = SIGNED_BY.get(name)
        if self._verifier is None or role is None or not message.payload:
            return None
        return self._verifier.check(message, role)


def signer_of(credentials: Credentials | None) -> Signer | None:
    """The signer of a token that has one.

    Raises:
        ConfigurationError: its key is damaged, or `cryptography` is missing.
    """
    if credentials is None or credentials.key is None or credentials.certificate is None:
        return None
    return Signer(credentials.key, credentials.certificate)


def _damaged() -> ConfigurationError:
    return ConfigurationError(
        "the join token's keys cannot be used",
        expected="all of it, as it was issued",
        got="something else",
    )
