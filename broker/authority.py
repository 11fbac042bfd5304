"""The cluster's own authority for signatures: vouches for the keys of those who may command.

Beside the one for TLS (`certificates.py`): that one says who is the broker, this one whose word counts,
whatever the broker does. Agents and orchestrator know its public key from their tokens; its private key is
needed only when a signer's token is made.
"""

from __future__ import annotations

from typing import Final, Self

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.access import Role
from shared.bus.token import Credentials
from shared.codec import encode_json
from shared.errors import ConfigurationError
from shared.messages.signature import Certificate, SignerRole
from shared.signing import certificate_text

SIGNERS: Final[dict[Role, SignerRole]] = {
    Role.ORCHESTRATOR: "orchestrator",
    Role.OPERATOR: "operator",
}
"""The roles that sign; the others only check, or not even that."""


class Authority:
    """Made by `generate` or `load`."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """A new one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, pem: bytes) -> Self:
        """Read what `pem` gave.

        Raises:
            ConfigurationError: it is something else.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(
                "the authority's key is damaged",
                expected="an Ed25519 key in PEM, as `amp4ec broker init` wrote it",
                got="something else" if key is None else type(key).__name__,
            )
        return cls(key)

    @property
    def public(self) -> str:
        """The public key, 32 bytes in hexadecimal."""
        return self._key.public_key().public_bytes_raw().hex()

    def pem(self) -> bytes:
        """The private key."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def credentials(self, name: str, role: SignerRole) -> Credentials:
        """A key pair of the signer's own, and the word for it.

        Orchestrators also get the secret that pipelines' keys are derived from: the same for each, so that a
        standby with a token of its own can take over what runs.
        """
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        certificate = Certificate(
            name=name,
            role=role,
            key=public.hex(),
            signature=self._key.sign(certificate_text(name, role, public)).hex(),
        )
        return Credentials(
            authority=self.public,
            key=key.private_bytes_raw().hex(),
            certificate=encode_json(certificate).decode(),
            secret=self._secret().hex() if role == "orchestrator" else None,
        )

    def _secret(self) -> bytes:
        derivation = HKDF(
            algorithm=hashes.SHA256(), length=32, salt=None, info=b"amp4ec pipeline keys 1"
        )
        return derivation.derive(self._key.private_bytes_raw())
