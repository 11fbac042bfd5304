"""Where a broker is and how to get in: one value, one text form.

`mqtt://user:pass@host:1883`, `mqtts://host` (8883; `?ca=/path/ca.pem`, `?insecure=1`), or a bare
`host:port`. User name and password are percent-decoded; IPv6 addresses stand in brackets. A join token
(`token.py`) is an address, too, and so is `@FILE`, the name of a file that holds any of these.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from shared.bus.token import PREFIX, Bundle, Credentials, decode_token, encode_token
from shared.errors import ConfigurationError

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
_EXPECTED = "mqtt://[user:password@]host[:port], mqtts://…, host:port, a join token or @FILE"
_LONGEST_FILE = 65_536
_UNGUESSABLE_CHARACTERS = 24
"""Of a client id: 96 bits, written in hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerUrl:
    """A broker's address. Its text forms never show the password."""

    host: str
    port: int = 1883
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None
    """PEM file of the authorities to trust instead of the system's; TLS only."""
    ca_pem: str | None = field(default=None, repr=False)
    """The same as text, from a join token."""
    credentials: Credentials | None = field(default=None, repr=False)
    """What to check and make signatures with, from a join token."""
    insecure: bool = False
    """Encrypt without checking who answers; TLS only, for tests and first steps."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read any of the forms in this module's docstring.

        Raises:
            ConfigurationError: when the text is none of them. The message never repeats a password.
        """
        text = text.strip()
        if text.startswith("@"):
            text = _read(Path(text[1:]).expanduser())
        if text.startswith(PREFIX):
            return cls._from_token(decode_token(text))
        try:
            parts = urlsplit(text if "://" in text else f"mqtt://{text}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            # Not `from error`: urllib's text may quote the password.
            raise _refused(str(error) if "@" not in text else "a malformed address") from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise _refused(f"the scheme {parts.scheme!r}")
        if not host:
            raise _refused("no host")
        if not _is_host(host):
            raise _refused(f"the host {host!r}")
        if port == 0:
            raise _refused("port 0")
        if parts.path not in ("", "/") or parts.fragment:
            raise _refused("something after the address")
        if parts.password is not None and not parts.username:
            raise _refused("a password without a user name")
        tls = parts.scheme == "mqtts"
        ca_file, insecure = _tls_options(parts, tls=tls)
        return cls(
            host=host,
            port=port if port is not None else _DEFAULT_PORTS[parts.scheme],
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password is not None else None,
            tls=tls,
            ca_file=ca_file,
            insecure=insecure,
        )

    @classmethod
    def _from_token(cls, bundle: Bundle) -> Self:
        if not bundle.host or not _is_host(bundle.host) or not 0 < bundle.port < 65_536:
            raise _refused(f"a join token for {bundle.host!r}, port {bundle.port}")
        return cls(
            host=bundle.host,
            port=bundle.port,
            username=bundle.user,
            password=bundle.password,
            tls=True,
            ca_pem=bundle.ca,
            credentials=bundle.credentials,
        )

    @property
    def own_login(self) -> bool:
        """Whether the user name is one program's or device's own, from a join token: then it names it."""
        return self.username is not None and self.ca_pem is not None

    @property
    def login(self) -> str:
        """Who logs in, for people."""
        return "no user name" if self.username is None else f"user {self.username!r}"

    def client_id(self, name: str) -> str:
        """The MQTT client id of the session that its owner calls `name`.

        Mosquitto lets whoever may log in take over any session whose client id he knows: its connection is
        ended, its queue is his to throw away. So with a login of one's own the id is one that only who has
        the token can tell, and still the same over restarts. Orchestrators share a secret, and so have the
        same ids with tokens of their own: one takes over the other's queue. A password that people share or
        choose guards no id: there it is the name.
        """
        shared = None if self.credentials is None else self.credentials.secret
        secret = shared or self.password
        if not self.own_login or secret is None:
            return name
        digest = hmac.new(secret.encode(), f"client id {name}".encode(), hashlib.sha256)
        return f"{name}-{digest.hexdigest()[:_UNGUESSABLE_CHARACTERS]}"

    def token(self) -> str:
        """This address as a join token, secret included.

        Raises:
            ConfigurationError: it has no login or no authority's certificate as text.
        """
        if self.username is None or self.password is None or self.ca_pem is None:
            raise ConfigurationError(
                "a join token", expected="user, password and certificate", got=str(self)
            )
        return encode_token(
            Bundle(
                host=self.host,
                port=self.port,
                user=self.username,
                password=self.password,
                ca=self.ca_pem,
                credentials=self.credentials,
            )
        )

    @property
    def address(self) -> str:
        """`host:port`, for messages."""
        return f"{self._host_text}:{self.port}"

    @property
    def _host_text(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        login = ""
        if self.username is not None:
            login = quote(self.username, safe="") + (":***" if self.password is not None else "")
            login += "@"
        options = []
        if self.ca_file is not None:
            options.append(f"ca={quote(self.ca_file)}")
        if self.insecure:
            options.append("insecure=1")
        query = "?" + "&".join(options) if options else ""
        return f"{'mqtts' if self.tls else 'mqtt'}://{login}{self.address}{query}"

    def tls_context(self) -> ssl.SSLContext | None:
        """The context that this address asks for; None without TLS.

        Raises:
            ConfigurationError: when the CA file cannot be read.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file, cadata=self.ca_pem)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"the broker's CA {self.ca_file or 'in the join token'} cannot be used: {error}",
                expected="certificates in PEM",
            ) from error
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`: an address, or a name, of which `localhost` is known."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST_FILE).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the file {path} with the broker's address cannot be read",
            expected="one line: an address or a join token",
            got=str(error),
        ) from None
    if text.startswith("@"):
        raise _refused("a file that names another file")
    return text


def _is_host(host: str) -> bool:
    # What the resolver would choke on later, in a thread, with another kind of error.
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return host.isprintable() and " " not in host


def _tls_options(parts: SplitResult, *, tls: bool) -> tuple[str | None, bool]:
    ca_file: str | None = None
    insecure = False
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in ("ca", "insecure"):
            raise _refused(f"the option {name!r}")
        if not tls:
            # An option that silently does nothing would pass for encryption.
            raise _refused(f"the option {name!r} on an address without TLS")
        if name == "ca":
            if not value:
                raise _refused("an empty ca option")
            ca_file = value
        else:
            if value not in ("0", "1"):
                raise _refused(f"insecure={value!r}")
            insecure = value == "1"
    return ca_file, insecure


def _refused(got: str) -> ConfigurationError:
    return ConfigurationError("the broker's address makes no sense", expected=_EXPECTED, got=got)
