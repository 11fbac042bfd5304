"""A closed broker's directory: its authority, its certificate, who may log in, and what each may do.

::

    DIR/closed.json      hosts, port, root topic, users and their roles; the one source of the two below
    DIR/acl              what each user may do (Mosquitto)
    DIR/passwords        salted hashes (Mosquitto)
    DIR/ca.pem, ca.key   the cluster's own authority; whoever has the key can pose as the broker
    DIR/authority.key    vouches for those who sign (`broker/authority.py`); whoever has it can command
    DIR/server.pem, .key the broker's certificate
    DIR/tokens/NAME      the bundles made by `init`, for the orchestrator and the operator
    DIR/bridge.token     of a branch: its login to the main broker, whose authority vouches for signers
    DIR/bridge-ca.pem    the authority of the main broker's certificate
    DIR/mosquitto.*      what Mosquitto keeps while it runs

Files with secrets are readable by their owner only. A password is in the token that is handed out and
nowhere else: a lost token is replaced, not looked up. `ca.key` is read by nobody after `init`, and
`authority.key` only to make the tokens of orchestrators and operators: keep both off the broker's machine.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from broker.access import Role, User, render
from broker.authority import SIGNERS, Authority
from broker.bridge import Bridge
from broker.certificates import Pair, make_authority, make_server
from broker.config import Security
from broker.passwords import new_password, password_line
from shared.bus.token import Credentials
from shared.bus.url import BrokerUrl
from shared.codec import decode_json, encode_json
from shared.errors import ConfigurationError, ProtocolError
from shared.files import write_whole
from shared.ids import HOME_ASSISTANT, check_prefix
from shared.topics import DEFAULT_ROOT, Topics

DEFAULT_PORT = 8883
_FILE = "closed.json"
_AUTHORITY_KEY = "authority.key"
_BRIDGE_TOKEN, _BRIDGE_CA = "bridge.token", "bridge-ca.pem"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """`closed.json`. `hosts` are what the broker's certificate is for; the first stands in tokens.

    `authority` is the public key of `authority.key`, empty where the directory is older than signatures.
    `discovery` is the prefix below which Home Assistant listens for devices.
    """

    hosts: tuple[str, ...]
    port: int
    root: str
    authority: str = ""
    discovery: str = HOME_ASSISTANT
    users: tuple[User, ...] = field(default=())


class ClosedBroker:
    """A directory of the form above. Changes are written at once; a broker that runs on it is told.

    `create` makes one, `open` reads one.
    """

    def __init__(self, directory: Path, settings: _Settings) -> None:
        self.directory = directory.resolve()
        self._settings = settings

    @classmethod
    def is_here(cls, directory: Path) -> bool:
        """Whether a directory holds a closed broker."""
        return (directory / _FILE).is_file()

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        hosts: Sequence[str],
        port: int = DEFAULT_PORT,
        root: str = DEFAULT_ROOT,
        discovery: str = HOME_ASSISTANT,
        now: dt.datetime,
        main: BrokerUrl | None = None,
    ) -> Self:
        """Make the set-up, with a token for the orchestrator and one for an operator in `DIR/tokens`.

        A branch gets neither: both are at its main broker, whose authority is its own.

        Args:
            directory: made when missing.
            hosts: names and addresses by which agents and clients will call the broker, the usual one
                first.
            port: where it will listen.
            root: the cluster's root topic.
            discovery: Home Assistant's discovery prefix.
            now: certificates count from here, with time zone.
            main: the main broker of a branch: a token that was made there for the role `bridge`.

        Raises:
            ConfigurationError: there is one already, or a value makes no sense.
        """
        if main is not None and (not main.own_login or main.ca_pem is None):
            raise ConfigurationError(
                "a closed branch logs in to a closed main broker",
                expected="a token: `amp4ec join-token NAME --role bridge` at the main broker",
                got=str(main),
            )
        if cls.is_here(directory):
            raise ConfigurationError(
                f"{directory} holds a closed broker already; `amp4ec join-token` adds to it",
                expected="an empty directory",
                got=_FILE,
            )
        Topics(root)
        check_prefix(discovery)
        authority = make_authority("AMP4EC cluster", now)
        server = make_server(authority, hosts, now)
        directory.mkdir(parents=True, exist_ok=True)
        signing = Authority.generate() if main is None else None
        settings = _Settings(
            hosts=tuple(hosts),
            port=port,
            root=root,
            authority=_vouching(main, signing),
            discovery=discovery,
        )
        closed = cls(directory, settings)
        closed._write_pair("ca", authority)
        closed._write_pair("server", server)
        _write(closed.directory / "passwords", b"", secret=True)
        if main is not None:
            _write(closed.directory / _BRIDGE_TOKEN, f"{main.token()}\n".encode(), secret=True)
            _write(closed.directory / _BRIDGE_CA, (main.ca_pem or "").encode(), secret=False)
        if signing is None:
            closed._save()
            return closed
        _write(closed.directory / _AUTHORITY_KEY, signing.pem(), secret=True)
        closed._save()
        (closed.directory / "tokens").mkdir(exist_ok=True, mode=0o700)
        for role in (Role.ORCHESTRATOR, Role.OPERATOR):
            url = closed.add(User(name=role.value, role=role))
            _write(closed.token_file(role.value), f"{url.token()}\n".encode(), secret=True)
        return closed

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Read the set-up.

        Raises:
            ConfigurationError: there is none, or it is damaged.
        """
        try:
            settings = decode_json((directory / _FILE).read_bytes(), _Settings)
        except OSError as error:
            raise ConfigurationError(
                f"{directory} holds no closed broker; `amp4ec broker init {directory}` makes one",
                expected=_FILE,
                got=error.strerror or str(error),
            ) from None
        except ProtocolError as error:
            raise ConfigurationError(
                f"{directory / _FILE} is damaged", expected=error.expected, got=error.got
            ) from error
        return cls(directory, settings)

    @property
    def users(self) -> tuple[User, ...]:
        """Who may log in."""
        return self._settings.users

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._settings.port

    @property
    def root(self) -> str:
        """The cluster's root topic."""
        return self._settings.root

    @property
    def signs(self) -> bool:
        """Whether orders are signed here; a directory made before there were signatures has no authority."""
        return bool(self._settings.authority)

    @property
    def pid_file(self) -> Path:
        """Where a running Mosquitto's process id is."""
        return self.directory / "mosquitto.pid"

    @property
    def security(self) -> Security:
        """What the broker's configuration names."""
        return Security(
            certificate_file=str(self.directory / "server.pem"),
            key_file=str(self.directory / "server.key"),
            password_file=str(self.directory / "passwords"),
            acl_file=str(self.directory / "acl"),
        )

    def bridge(self, nodes: Sequence[str] = ()) -> Bridge | None:
        """What connects a branch to its main broker; None where this is no branch.

        Args:
            nodes: as of `Bridge`.

        Raises:
            ConfigurationError: the token is damaged, or a node's name is none.
        """
        token = self.directory / _BRIDGE_TOKEN
        if not token.exists():
            return None
        main = BrokerUrl.parse(f"@{token}")
        return Bridge(
            remote=main,
            root=self.root,
            name=main.username or "branch",
            nodes=tuple(nodes),
            ca_file=str(self.directory / _BRIDGE_CA),
        )

    def token_file(self, name: str) -> Path:
        """Where `create` put a token."""
        return self.directory / "tokens" / name

    def add(self, user: User, host: str | None = None) -> BrokerUrl:
        """Let a user in; `token()` of what is returned has all that it needs, and is not kept.

        Args:
            user: a name that is not taken yet.
            host: the broker's as this user will call it; the first one when None.

        Raises:
            ConfigurationError: the name is taken, the broker's certificate does not hold for `host`, or the
                authority's key is needed and not here.
        """
        if any(known.name == user.name for known in self.users):
            raise ConfigurationError(
                f"{user.name!r} has a token already; --revoke it first, or choose another name",
                expected="a new name",
                got=repr(user.name),
            )
        hosts = self._settings.hosts
        if host is not None and host not in hosts:
            raise ConfigurationError(
                "the broker's certificate is not for this host",
                expected=f"one of {', '.join(hosts)}",
                got=repr(host),
            )
        credentials = self._credentials(user)
        password = new_password()
        lines = self._password_lines() | {user.name: password_line(user.name, password)}
        self._change((*self.users, user), lines)
        return BrokerUrl(
            host=host or hosts[0],
            port=self.port,
            username=user.name,
            password=password,
            tls=True,
            ca_pem=(self.directory / "ca.pem").read_text(),
            credentials=credentials,
        )

    def revoke(self, name: str) -> User:
        """Let a user in no more; a broker that runs ends its connections.

        Raises:
            ConfigurationError: nobody has that name.
        """
        for user in self.users:
            if user.name == name:
                rest = tuple(other for other in self.users if other is not user)
                lines = self._password_lines()
                lines.pop(name, None)
                self._change(rest, lines)
                return user
        raise ConfigurationError(
            "nobody has a token of that name",
            expected=f"one of {', '.join(user.name for user in self.users)}",
            got=repr(name),
        )

    def _credentials(self, user: User) -> Credentials | None:
        public = self._settings.authority
        if not public:
            return None
        if user.role not in SIGNERS:
            return Credentials(authority=public)
        path = self.directory / _AUTHORITY_KEY
        try:
            authority = Authority.load(path.read_bytes())
        except OSError as error:
            if (self.directory / _BRIDGE_TOKEN).exists():
                raise ConfigurationError(
                    f"{self.directory} is a branch: orchestrators and operators are at its main broker",
                    expected="another role, or `amp4ec join-token` there",
                    got=f"--role {user.role}",
                ) from None
            raise ConfigurationError(
                f"the token of an {user.role} is signed with {path}: put it back for that long",
                expected=str(path),
                got=error.strerror or str(error),
            ) from None
        if authority.public != public:
            raise ConfigurationError(
                f"{path} is of another cluster",
                expected=f"the key of {public[:16]}...",
                got=f"that of {authority.public[:16]}...",
            )
        return authority.credentials(user.name, SIGNERS[user.role])

    def _change(self, users: tuple[User, ...], passwords: dict[str, str]) -> None:
        self._settings = replace(self._settings, users=users)
        text = "".join(f"{line}\n" for _, line in sorted(passwords.items()))
        _write(self.directory / "passwords", text.encode(), secret=True)
        self._save()
        self._tell()

    def _save(self) -> None:
        acl = render(self.users, Topics(self.root), self._settings.discovery)
        _write(self.directory / "acl", acl.encode(), secret=True)
        _write(self.directory / _FILE, encode_json(self._settings), secret=False)

    def _tell(self) -> None:
        """Have a broker that runs on this directory read its files again."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            pid = int(self.pid_file.read_text())
            if _is_mosquitto(pid):
                os.kill(pid, signal.SIGHUP)

    def _password_lines(self) -> dict[str, str]:
        text = (self.directory / "passwords").read_text()
        return {line.partition(":")[0]: line for line in text.splitlines()}

    def _write_pair(self, name: str, pair: Pair) -> None:
        _write(self.directory / f"{name}.pem", pair.certificate, secret=False)
        _write(self.directory / f"{name}.key", pair.key, secret=True)


def _vouching(main: BrokerUrl | None, signing: Authority | None) -> str:
    """The public key that signers are vouched for with; empty below a main broker that has none."""
    if signing is not None:
        return signing.public
    return main.credentials.authority if main is not None and main.credentials is not None else ""


def _is_mosquitto(pid: int) -> bool:
    """A file may outlive its process, and a number be somebody else's by then."""
    command = Path(f"/proc/{pid}/comm")
    return not command.exists() or command.read_text().strip() == "mosquitto"


def _write(path: Path, data: bytes, *, secret: bool) -> None:
    write_whole(path, data, mode=0o600 if secret else 0o644)
