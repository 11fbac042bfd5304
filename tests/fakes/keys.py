"""Tokens of a closed cluster, for tests on the fake wire: the login means nothing there, the keys do."""

from __future__ import annotations

from broker.authority import Authority
from shared.bus import BrokerUrl
from shared.bus.token import Credentials
from shared.messages.signature import SignerRole
from shared.signing import Signer, signer_of


class Cluster:
    """One authority, and the tokens that it makes."""

    def __init__(self) -> None:
        self.authority = Authority.generate()

    @property
    def agent(self) -> Credentials:
        """Of whoever only checks."""
        return Credentials(authority=self.authority.public)

    def signer(self, role: SignerRole = "orchestrator", name: str = "") -> Signer:
        """Somebody who signs in that role."""
        signer = signer_of(self.authority.credentials(name or role, role))
        assert signer is not None
        return signer


def url(credentials: Credentials | None, name: str = "x") -> BrokerUrl:
    """The address in a token with these keys."""
    return BrokerUrl(
        host="nowhere", username=name, password="x", ca_pem="x", credentials=credentials
    )
