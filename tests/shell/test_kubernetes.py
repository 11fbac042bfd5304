"""The manifests against Kubernetes' own schemas, and against what they name of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from broker.config import BrokerConfig, Security
from deploy.cli.app import cli
from deploy.containers.images import AgentKind
from shared.bus import BrokerUrl
from shared.ids import check_name

DEPLOY = Path(__file__).parents[2] / "deploy"
DIRECTORY = DEPLOY / "kubernetes"
CLOSED = "/run/amp4ec/broker"
VERSIONS = ("1.28", "1.33", kubernetes_validate.latest_version())
"""An old one that is still met, one in between, and the latest that the schemas are there for."""


def kustomization() -> dict[str, Any]:
    document = yaml.safe_load((DIRECTORY / "kustomization.yaml").read_text())
    assert isinstance(document, dict)
    return document


def documents() -> list[dict[str, Any]]:
    """What `kubectl kustomize` makes of it but for the digest in the generated name: no patches are used."""
    made = [
        document
        for name in kustomization()["resources"]
        for document in yaml.safe_load_all((DIRECTORY / name).read_text())
    ]
    for generator in kustomization()["configMapGenerator"]:
        data = {name: (DIRECTORY / name).read_text() for name in generator["files"]}
        metadata = {"name": generator["name"], "namespace": kustomization()["namespace"]}
        made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    return made


def of(kind: str, name: str = "") -> list[dict[str, Any]]:
    return [
        each
        for each in documents()
        if each["kind"] == kind and name in ("", each["metadata"]["name"])
    ]


def pods() -> Iterator[dict[str, Any]]:
    for kind in ("StatefulSet", "DaemonSet"):
        yield from (each["spec"]["template"]["spec"] for each in of(kind))


def containers() -> Iterator[dict[str, Any]]:
    for pod in pods():
        yield from pod["containers"]


def test_nothing_of_kustomize_is_used_that_this_test_does_not_do() -> None:
    assert set(kustomization()) == {
        *("apiVersion", "kind", "namespace"),
        *("resources", "configMapGenerator"),
    }
    listed = set(kustomization()["resources"]) | {"kustomization.yaml"}
    assert listed == {path.name for path in DIRECTORY.glob("*.yaml")}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_what_kubernetes_takes(version: str) -> None:
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_find_a_slip() -> None:
    (agent,) = of("DaemonSet")
    agent["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        kubernetes_validate.validate(agent, VERSIONS[-1], strict=True)


def test_everything_is_in_the_namespace_and_selects_its_own_pods() -> None:
    for document in documents():
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "amp4ec"
    for kind in ("StatefulSet", "DaemonSet"):
        for each in of(kind):
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
            if kind == "StatefulSet":
                assert of("Service", each["spec"]["serviceName"])


def test_nobody_is_root_or_writes_where_it_need_not() -> None:
    """What the profile `restricted` asks for, and read-only root file systems."""
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        security = pod["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] == 10001  # as in deploy/images
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any("hostPath" in volume for volume in pod["volumes"])
    for container in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_everything_is_limited_and_probed() -> None:
    for container in containers():
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            (how,) = {"exec", "tcpSocket"} & set(container[probe])
            if how == "exec":
                program, word = container[probe]["exec"]["command"]
                assert program == "/opt/amp4ec/healthy"
                assert f"{word})" in (DEPLOY / "images" / "healthy").read_text()
            else:
                ports = {port["name"] for port in container["ports"]}
                assert container[probe]["tcpSocket"]["port"] in ports


def test_volumes_are_there_for_every_mount() -> None:
    for kind in ("StatefulSet", "DaemonSet"):
        for each in of(kind):
            pod = each["spec"]["template"]["spec"]
            claims = each["spec"].get("volumeClaimTemplates", [])
            there = {volume["name"] for volume in pod["volumes"]}
            there |= {claim["metadata"]["name"] for claim in claims}
            mounted = {mount["name"] for c in pod["containers"] for mount in c["volumeMounts"]}
            assert mounted == there


def test_images_are_those_that_are_built() -> None:
    text = (DEPLOY / "containers" / "images.py").read_text()
    for container in containers():
        name, _, tag = container["image"].rpartition(":")
        role = name.removeprefix("localhost/amp4ec-")
        assert f'"{role}"' in text or f'"{name}"' in text
        assert tag in ("latest", *(kind.value for kind in AgentKind))


def test_the_commands_take_these_arguments() -> None:
    for container in containers():
        if "args" not in container:
            continue
        command, *arguments = container["args"]
        parsed = cli.get_command(None, command)  # type: ignore[arg-type]
        assert parsed is not None
        flags = {flag for parameter in parsed.params for flag in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= flags


def test_the_brokers_configuration_is_ours_and_names_what_is_mounted() -> None:
    config = BrokerConfig(
        bind="0.0.0.0",
        port=8883,
        persistence_dir="/var/lib/amp4ec",
        security=Security(
            certificate_file=f"{CLOSED}/server.pem",
            key_file=f"{CLOSED}/server.key",
            password_file=f"{CLOSED}/passwords",
            acl_file=f"{CLOSED}/acl",
        ),
    )
    (configuration,) = of("ConfigMap")
    assert configuration["data"] == {"mosquitto.conf": config.render()}
    (broker,) = [each for each in containers() if each["name"] == "mosquitto"]
    places = {mount["mountPath"] for mount in broker["volumeMounts"]}
    assert {CLOSED, "/var/lib/amp4ec", "/etc/amp4ec"} == places
    assert '"/etc/amp4ec/mosquitto.conf"' in (DEPLOY / "images" / "broker.Dockerfile").read_text()
    assert broker["ports"][0]["containerPort"] == config.port
    guide = (DIRECTORY / "README.md").read_text()
    for name in ("acl", "passwords", "server.pem", "server.key"):
        assert f"amp4ec/{name}" in guide


def test_the_probe_looks_at_the_port_that_the_service_has() -> None:
    (service,) = of("Service", "amp4ec-broker")
    for container in containers():
        for variable in container.get("env", []):
            if variable["name"] == "AMP4EC_BROKER":
                url = BrokerUrl.parse(variable["value"])
                assert (url.host, url.tls) == (check_name("host", "amp4ec-broker"), True)
                assert url.port == service["spec"]["ports"][0]["port"]
