"""`amp4ec doctor`: this machine, the broker and the cluster, with what to do about each finding."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from deploy.cli.options import NAME, Common, common_options, json_option
from deploy.cli.output import Progress, print_json, print_line
from deploy.cli.services import default_state_dir
from deploy.doctor.finding import Finding, Level, error, healthy
from shared.bus import BrokerUrl
from shared.errors import BrokerError, BrokerUnreachableError
from shared.topics import Topics

FAILED, UNREACHABLE = 1, 3
_MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.WARNING: "WARN", Level.ERROR: "ERROR"}


@click.command("doctor")
@click.option("--here", is_flag=True, help="Look at this machine only, at no broker.")
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where this machine's agent keeps weights.  [default: as of `amp4ec agent`]",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where this machine's orchestrator keeps its state.  [default: as of `amp4ec orchestrator`]",
)
@click.option(
    "--name", type=NAME, default="node", help="The name of this machine's agent, for its cache."
)
@json_option
@common_options
def doctor_command(
    *,
    common: Common,
    here: bool,
    cache_dir: Path | None,
    state_dir: Path | None,
    name: str,
    as_json: bool,
) -> int:
    """Look for what is wrong, and say how to mend it.

    Looks at this machine (runtimes, packages, CPU, memory, disk), at the broker (reachable, login, version,
    delays, queues, limits, rights, persistence) and at the cluster (orchestrator, nodes, models, versions,
    clocks, bridges, leftovers). It writes to one topic of its own and changes nothing.

    Exit codes: 0 nothing to mend, 1 something is, 3 the broker is not reachable.

    \b
    Example:
        amp4ec doctor --broker mqtt://192.168.1.5
    """  # noqa: D301
    from deploy.doctor.machine import Looks
    from deploy.doctor.machine import examine as examine_machine
    from edge_agent.options import default_cache_dir

    with Progress("looking at this machine") as progress:
        looks = Looks((cache_dir or default_cache_dir(name), state_dir or default_state_dir()))
        findings = examine_machine(looks, None if here else common.broker)
        reachable = True
        if not here:
            progress.step(f"looking at the broker and the cluster at {common.broker.address}")
            try:
                findings += asyncio.run(_there(common))
            except BrokerUnreachableError as failed:
                reachable = False
                findings.append(
                    error(
                        "broker.unreachable",
                        str(failed),
                        "start one (`amp4ec broker`), or name another (--broker, AMP4EC_BROKER): the host, "
                        "the port (1883, with TLS 8883), mqtts:// for TLS",
                    )
                )
    if as_json:
        print_json({"ok": healthy(findings), "findings": findings})
    else:
        print_line(describe(findings))
    return UNREACHABLE if not reachable else 0 if healthy(findings) else FAILED


async def _there(common: Common) -> list[Finding]:
    from deploy.doctor import broker, cluster

    topics = Topics(common.root)
    findings = await broker.examine(common.broker, topics)
    if any(finding.check == "broker.login" for finding in findings):
        return findings
    try:
        heard = await cluster.listen(common.broker, topics)
    except BrokerUnreachableError:
        raise
    except BrokerError as refused:
        return [
            *findings,
            error(
                "broker.subscription",
                f"the broker refused to be listened to: {refused}",
                "ask with the token of a monitor or an operator",
            ),
        ]
    # What an agent's login may not read is not missing.
    sees_all = not common.broker.own_login or heard.hears_how_it_does
    return findings + cluster.judge(
        heard, topics, _version(), sees_all=sees_all, remove=_remove(common.broker)
    )


def describe(findings: Sequence[Finding]) -> str:
    """For people: the worst last, where the eye is."""
    order = list(Level)
    lines = []
    for finding in sorted(findings, key=lambda each: order.index(each.level)):
        lines.append(f"{_MARKS[finding.level]:<5} {finding.check}: {finding.text}")
        if finding.mend:
            lines.append(f"      -> {finding.mend}")
    wrong = sum(each.level in (Level.WARNING, Level.ERROR) for each in findings)
    lines.append(
        "nothing to mend" if not wrong else f"{wrong} thing{'s' if wrong > 1 else ''} to mend"
    )
    return "\n".join(lines)


def _remove(url: BrokerUrl) -> str:
    """The beginning of a command that clears a retained topic."""
    login = "" if url.username is None else f" -u {url.username} -P PASSWORD"
    tls = " --cafile CA.pem" if url.tls else ""
    return f"mosquitto_pub -h {url.host} -p {url.port}{login}{tls} -r -n"


def _version() -> str:
    try:
        return version("amp4ec")
    except PackageNotFoundError:
        return ""
