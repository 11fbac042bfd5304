"""`amp4ec broker`, `broker init` and `join-token`: an open broker, a closed one, and who may in."""

from __future__ import annotations

import datetime as dt
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli.options import BROKER, NAME, PREFIX, ROOT, Common, json_option, service_options
from deploy.cli.output import note, print_json, print_line
from shared.bus import BrokerUrl
from shared.bus.url import is_loopback
from shared.errors import ConfigurationError
from shared.ids import HOME_ASSISTANT, name_from
from shared.topics import DEFAULT_ROOT

if TYPE_CHECKING:
    from broker.bridge import Bridge
    from broker.closed import ClosedBroker

_OPEN_PORT = 1883
_ROLES = ("agent", "client", "monitor", "operator", "orchestrator", "home-assistant", "bridge")
_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.group("broker", invoke_without_command=True)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="MQTT's port.  [default: 1883, or that of the closed broker]",
)
@click.option(
    "--bind",
    help="The address to listen on; 0.0.0.0 for every network this machine is in.  "
    "[default: 127.0.0.1; 0.0.0.0 for a closed broker]",
)
@click.option(
    "--websocket-port",
    type=click.IntRange(1, 65535),
    help="MQTT over WebSockets, where the installed Mosquitto has them.",
)
@click.option(
    "--directory",
    type=_DIRECTORY,
    help="Keep retained messages and sessions here; a closed broker's directory closes it.  "
    "[default: in memory only]",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Let anybody who reaches the port do anything, on other networks than loopback, too.",
)
@click.option(
    "--bridge",
    type=BROKER,
    help="Be a branch of the broker at this address: agents and clients here belong to the cluster there. "
    "A closed branch knows it from `broker init --bridge`.",
)
@click.option(
    "--bridge-node",
    "bridge_nodes",
    type=NAME,
    multiple=True,
    help="Let only this node's orders and weights come over the bridge; repeatable.  [default: all nodes']",
)
@click.option(
    "--print-config",
    is_flag=True,
    help="Print the configuration for a Mosquitto of your own, and run nothing.",
)
@service_options
def broker_command(
    *,
    common: Common,
    port: int | None,
    bind: str | None,
    websocket_port: int | None,
    directory: Path | None,
    insecure: bool,
    bridge: BrokerUrl | None,
    bridge_nodes: tuple[str, ...],
    print_config: bool,
) -> int:
    """Run Mosquitto with the settings that AMP4EC needs, until Ctrl-C.

    Open, on loopback only, unless its directory was made by `amp4ec broker init`: then with TLS, a login for
    each agent and client, and each held to its own topics.

    \b
    Examples:
        amp4ec broker
        amp4ec broker init ~/amp4ec --host "$(hostname)"
        amp4ec broker --directory ~/amp4ec
        amp4ec broker --bridge mqtt://192.168.1.5
    """  # noqa: D301
    if click.get_current_context().invoked_subcommand is not None:
        return 0
    from broker.config import BrokerConfig
    from broker.launcher import run_foreground

    closed = _closed(directory)
    if bind is None:
        bind = "127.0.0.1" if closed is None else "0.0.0.0"  # noqa: S104 - closed to strangers
    if closed is None and not insecure and not is_loopback(bind):
        raise ConfigurationError(
            "an open broker lets anybody who reaches it do anything: close it first "
            "(`amp4ec broker init DIR`, then --directory DIR), or say --insecure",
            expected="a closed broker, loopback, or --insecure",
            got=f"--bind {bind}",
        )
    config = BrokerConfig(
        bind=bind,
        port=port or (_OPEN_PORT if closed is None else closed.port),
        websocket_port=websocket_port,
        persistence_dir=None if directory is None else str(directory),
        security=None if closed is None else closed.security,
        pid_file=None if closed is None else str(closed.pid_file),
        bridge=_bridge(common, closed, bridge, bridge_nodes),
        log_types=("all",) if common.log_level == "debug" else ("error", "warning", "notice"),
    )
    if print_config:
        print_line(config.render().rstrip())
        return 0
    everywhere = bind in ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
    others = ", and at every other address of this machine" if everywhere else ""
    return run_foreground(
        config, on_ready=lambda broker: note(f"broker ready at {broker.url}{others}")
    )


@broker_command.command("init")
@click.argument("directory", type=_DIRECTORY)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="A name or address by which agents and clients will call the broker; repeatable, the usual one "
    "first.  [default: this host's name, localhost, 127.0.0.1]",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8883, show_default=True, help="MQTT's port."
)
@click.option(
    "--root", type=ROOT, default=DEFAULT_ROOT, show_default=True, help="The cluster's root topic."
)
@click.option(
    "--home-assistant",
    "discovery",
    type=PREFIX,
    default=HOME_ASSISTANT,
    show_default=True,
    help="The discovery prefix of a Home Assistant on this broker.",
)
@click.option(
    "--bridge",
    type=BROKER,
    help="Make a branch: the token of a `bridge` role of the main broker's (`amp4ec join-token`).",
)
def init_command(
    *,
    directory: Path,
    hosts: tuple[str, ...],
    port: int,
    root: str,
    discovery: str,
    bridge: BrokerUrl | None,
) -> int:
    """Make a closed broker in DIRECTORY: an authority, a certificate, and the first two logins.

    What the orchestrator and operators say is signed; a broker that was broken into cannot make agents run
    anything else. DIRECTORY/authority.key vouches for signers: it is read again only when `join-token` makes
    a token for an operator or orchestrator, and may be kept elsewhere until then. ca.key is not read again.

    \b
    Examples; the last two make a branch of the first:
        amp4ec broker init ~/amp4ec --host broker.local --host 192.168.1.5
        amp4ec join-token barn --role bridge --directory ~/amp4ec --output barn.token
        amp4ec broker init ~/barn --host barn.local --bridge @barn.token
    """  # noqa: D301
    from broker.closed import ClosedBroker

    closed = ClosedBroker.create(
        directory,
        hosts=hosts or tuple(dict.fromkeys((socket.gethostname(), "localhost", "127.0.0.1"))),
        port=port,
        root=root,
        discovery=discovery,
        now=dt.datetime.now(dt.UTC),
        main=bridge,
    )
    base = closed.directory
    if bridge is not None:
        print_line(
            f"closed branch of {bridge.address} in {base}\n"
            f"  run it:         amp4ec broker --directory {base}\n"
            f"  a device more:  amp4ec join-token pi-1 --directory {base}\n"
            "names of nodes are unique over both brokers; orchestrator and operators stay at the main one\n"
            f"keep {base / 'ca.key'} and bridge.token to yourself"
        )
        return 0
    print_line(
        f"closed broker in {base}\n"
        f"  run it:           amp4ec broker --directory {base}\n"
        f"  the orchestrator: amp4ec orchestrator --broker @{closed.token_file('orchestrator')}\n"
        f"  to operate it:    export AMP4EC_BROKER=@{closed.token_file('operator')}\n"
        f"  a device more:    amp4ec join-token pi-1 --directory {base}\n"
        f"  a client:         amp4ec join-token camera --role client --directory {base}\n"
        f"keep {base / 'authority.key'}, ca.key and tokens/ to yourself: who has them commands the cluster\n"
        "all three may be kept elsewhere: authority.key is needed for tokens of more operators and "
        "orchestrators, ca.key for nothing more, tokens where they are used"
    )
    return 0


@click.command("join-token")
@click.argument("name", type=NAME, required=False)
@click.option(
    "--directory", type=_DIRECTORY, required=True, help="The closed broker's (`broker init`)."
)
@click.option("--role", type=click.Choice(_ROLES), default="agent", show_default=True)
@click.option("--host", help="The broker's name as this one will call it.  [default: the first]")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the token to this file, readable by you only, and not to the terminal.",
)
@click.option(
    "--plain",
    is_flag=True,
    help="Print host, port, user, password and the certificate's file in place of a token: for programs that "
    "are not ours, such as Home Assistant.",
)
@click.option("--revoke", is_flag=True, help="Let NAME in no more; its connections end at once.")
@click.option("--list", "list_", is_flag=True, help="List who may log in.")
@json_option
def join_token_command(
    *,
    name: str | None,
    directory: Path,
    role: str,
    host: str | None,
    output: Path | None,
    plain: bool,
    revoke: bool,
    list_: bool,
    as_json: bool,
) -> int:
    """Give NAME a login to a closed broker, as one string, or take it back.

    An agent's NAME is its node's. The token is shown once and kept nowhere. For an operator or an
    orchestrator DIRECTORY/authority.key is needed.

    \b
    Examples; the second line is for the device:
        amp4ec join-token pi-1 --directory ~/amp4ec --output pi-1.token
        amp4ec agent --broker @pi-1.token
        amp4ec join-token home --role home-assistant --plain --directory ~/amp4ec
    """  # noqa: D301
    from broker.access import Role, User
    from broker.closed import ClosedBroker

    closed = ClosedBroker.open(directory)
    if list_:
        if as_json:
            print_json([{"name": user.name, "role": str(user.role)} for user in closed.users])
        else:
            for user in closed.users:
                print_line(f"{user.role:<15} {user.name}")
        return 0
    if name is None:
        raise click.UsageError("give a NAME, or --list")
    if revoke:
        user = closed.revoke(name)
        if as_json:
            print_json({"name": user.name, "role": str(user.role), "revoked": True})
        else:
            print_line(f"{user.role} {user.name} may not log in any more")
        return 0
    if plain and output is not None:
        raise click.UsageError("--plain prints what a token holds: give --output or --plain.")
    _warn_unsigned(closed)
    login = closed.add(User(name=name, role=Role(role)), host)
    if plain:
        _print_plain(closed, login, as_json=as_json)
        return 0
    token = login.token()
    if output is not None:
        with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(token + "\n")
    if as_json:
        shown = {"file": str(output)} if output is not None else {"token": token}
        print_json({"name": name, "role": role, **shown})
    else:
        print_line(token if output is None else f"{role} {name}: token in {output}")
    return 0


def _print_plain(closed: ClosedBroker, login: BrokerUrl, *, as_json: bool) -> None:
    """What any MQTT client asks for; shown once, as a token is."""
    shown = {
        "host": login.host,
        "port": login.port,
        "username": login.username,
        "password": login.password,
        "certificate": str(closed.directory / "ca.pem"),
    }
    if as_json:
        print_json(shown)
    else:
        for key, value in shown.items():
            print_line(f"{key:<12} {value}")
        print_line(f"with TLS; {shown['certificate']} is the authority to trust, and no secret")


def _bridge(
    common: Common, closed: ClosedBroker | None, main: BrokerUrl | None, nodes: tuple[str, ...]
) -> Bridge | None:
    from broker.bridge import Bridge

    if closed is not None:
        if main is not None:
            raise click.UsageError(
                "a closed broker becomes a branch when it is made: amp4ec broker init DIR --bridge @TOKEN"
            )
        bridge = closed.bridge(nodes)
    elif main is None:
        bridge = None
    elif main.own_login:
        raise ConfigurationError(
            "a branch of a closed broker is closed itself: amp4ec broker init DIR --bridge @TOKEN",
            expected="the address of an open broker",
            got=str(main),
        )
    else:
        host = socket.gethostname()
        bridge = Bridge(remote=main, root=common.root, name=name_from(host, "branch"), nodes=nodes)
    if bridge is None and nodes:
        raise click.UsageError("--bridge-node needs a branch: --bridge, or `broker init --bridge`")
    return bridge


def _closed(directory: Path | None) -> ClosedBroker | None:
    # The file's name rather than the module's word: an open broker needs no certificates package.
    if directory is None or not (directory / "closed.json").is_file():
        return None
    from broker.closed import ClosedBroker

    closed = ClosedBroker.open(directory)
    _warn_unsigned(closed)
    return closed


def _warn_unsigned(closed: ClosedBroker) -> None:
    if not closed.signs:
        note(
            f"{closed.directory} is older than signatures: who breaks into the broker commands the cluster; "
            "`amp4ec broker init` in a new directory, and new tokens, end that"
        )
