"""Who may vouch for messages on a closed cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from shared.messages import Key, Name

SignerRole = Literal["orchestrator", "operator"]
Signature = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]
"""64 bytes of Ed25519 in hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The authority's word that `key`, an Ed25519 public key, is that of `name`, who signs as `role`.

    `signature` is the authority's. It travels as the user property `signer` of what is signed.
    """

    name: Name
    role: SignerRole
    key: Key
    signature: Signature
