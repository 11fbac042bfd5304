"""Who vouches for what: signatures, certificates, and every way in which they do not hold."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from broker.authority import Authority
from shared.bus import Message, Properties
from shared.bus.token import Bundle, Credentials, decode_token, encode_token
from shared.codec import decode_json, encode_json
from shared.errors import ConfigurationError, ForgedError
from shared.messages.signature import Certificate
from shared.pipeline_mac import PipelineMac
from shared.signing import SIGNED_BY, Admission, Signer, Verifier, signer_of
from tests.fakes.keys import Cluster

CLUSTER, OTHER = Cluster(), Cluster()
ORCHESTRATOR, OPERATOR = CLUSTER.signer(), CLUSTER.signer("operator")
VERIFIER = Verifier(CLUSTER.authority.public)
TOPIC = "amp4ec/v1/node/pi-1/assignment"
PAYLOAD = b'{"node": "pi-1"}'


def message(
    signer: Signer = ORCHESTRATOR,
    topic: str = TOPIC,
    payload: bytes = PAYLOAD,
    at_ms: int | None = None,
) -> Message:
    return Message(topic, payload, properties=signer.sign(topic, payload, at_ms))


def changed(given: Message, **properties: str | None) -> Message:
    """The message with user properties replaced, or (None) without them."""
    user = dict(given.properties.user) | properties
    kept = tuple((name, value) for name, value in user.items() if value is not None)
    return replace(given, properties=Properties(user=kept))


def reason(given: Message, verifier: Verifier = VERIFIER) -> str:
    with pytest.raises(ForgedError) as caught:
        verifier.check(given, "orchestrator")
    assert caught.value.expected
    return caught.value.reason


def test_a_signature_holds_and_says_whose_it_is() -> None:
    signed = VERIFIER.check(message(), "orchestrator")
    assert (signed.by.name, signed.by.role, signed.at_ms) == ("orchestrator", "orchestrator", None)
    later = VERIFIER.check(message(OPERATOR, at_ms=17), "operator")
    assert (later.by.name, later.at_ms) == ("operator", 17)
    assert VERIFIER.check(replace(message(), payload=bytearray(PAYLOAD)), "orchestrator") == signed


@pytest.mark.parametrize(("at_ms", "at"), [(None, b""), (1_700_000_000_000, b"1700000000000")])
def test_as_written_down_in_the_protocol(at_ms: int | None, at: bytes) -> None:
    """The same from the primitives, so that another implementation can speak with ours."""
    properties = message(at_ms=at_ms).properties
    signature = properties.user_value("signature")
    assert signature is not None
    text = b"amp4ec message 1\0" + at + b"\x0030\0" + TOPIC.encode() + PAYLOAD
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(ORCHESTRATOR.certificate.key))
    key.verify(bytes.fromhex(signature), text)
    certificate = ORCHESTRATOR.certificate
    vouched = b"amp4ec certificate 1\0orchestrator\0orchestrator\0" + bytes.fromhex(certificate.key)
    authority = Ed25519PublicKey.from_public_bytes(bytes.fromhex(CLUSTER.authority.public))
    authority.verify(bytes.fromhex(certificate.signature), vouched)


@given(payload=st.binary(), flipped=st.integers(min_value=0))
def test_no_other_payload(payload: bytes, flipped: int) -> None:
    good = message(payload=payload)
    VERIFIER.check(good, "orchestrator")
    if payload:
        bit = flipped % (8 * len(payload))
        bad = bytearray(payload)
        bad[bit // 8] ^= 1 << bit % 8
        assert reason(replace(good, payload=bad)) == "bad_signature"
    assert reason(replace(good, payload=payload + b"\0")) == "bad_signature"


def test_no_other_topic_and_no_other_time() -> None:
    good = message(at_ms=5)
    assert reason(replace(good, topic="amp4ec/v1/node/pi-2/assignment")) == "bad_signature"
    for at in (None, "6", "five", "", "-5"):
        assert reason(changed(good, signed_at_ms=at)) == "bad_signature", at
    # What moves from one field into the next is another message.
    moved = message(topic="a", payload=b"b\0c")
    assert reason(replace(moved, topic="a\0b", payload=b"c")) == "bad_signature"


@pytest.mark.parametrize("missing", ["signer", "signature"])
def test_nobody_signed(missing: str) -> None:
    assert reason(changed(message(), **{missing: None})) == "unsigned"
    assert reason(Message(TOPIC, PAYLOAD)) == "unsigned"


@pytest.mark.parametrize("signature", ["", "00", "zz" * 64, "00" * 64, "0" * 127])
def test_a_signature_that_is_none(signature: str) -> None:
    assert reason(changed(message(), signature=signature)) == "bad_signature"


def test_an_operator_is_no_orchestrator() -> None:
    assert reason(message(OPERATOR)) == "wrong_role"


def test_a_signer_of_another_cluster() -> None:
    assert reason(message(OTHER.signer())) == "unknown_signer"
    assert reason(message(), Verifier(OTHER.authority.public)) == "unknown_signer"


def test_nobody_gives_himself_another_role_name_or_key() -> None:
    certificate = OPERATOR.certificate
    for forged in (
        replace(certificate, role="orchestrator"),
        replace(certificate, name="orchestrator"),
        replace(certificate, key=OTHER.signer().certificate.key),
        replace(certificate, signature="0" * 128),
    ):
        text = encode_json(forged).decode()
        assert reason(changed(message(OPERATOR), signer=text)) == "unknown_signer"


@pytest.mark.parametrize("text", ["", "{}", "null", "x" * 5000, '{"name": "\\ud800"}', "[" * 900])
def test_a_certificate_that_is_none(text: str) -> None:
    assert reason(changed(message(), signer=text)) == "unknown_signer"


WORDS = st.one_of(
    st.text(max_size=200),
    st.sampled_from(
        [
            "",
            "00",
            "0" * 64,
            "0" * 128,
            " " * 128,
            "-1",
            "1e3",
            str(2**53 + 1),
            "9" * 5000,
            "\u0663",
        ]
    ),
    st.just(encode_json(ORCHESTRATOR.certificate).decode()),
)


@given(
    user=st.lists(
        st.tuples(st.sampled_from(["signer", "signature", "signed_at_ms", "mac", "x"]), WORDS),
        max_size=6,
    ),
    payload=st.binary(max_size=50),
)
def test_whatever_comes_is_refused_and_nothing_else_goes_wrong(
    user: list[tuple[str, str]], payload: bytes
) -> None:
    given_ = Message(TOPIC, payload, properties=Properties(user=tuple(user)))
    assert reason(given_) in {"unsigned", "unknown_signer", "bad_signature"}
    assert not PipelineMac(b"k" * 32).holds(given_)


def test_a_time_that_is_none_of_ours() -> None:
    for at_ms in (-1, 2**53 + 1, 10**4000):
        assert reason(message(at_ms=at_ms)) == "bad_signature"


def test_somebody_elses_signature_under_ones_own_certificate() -> None:
    stranger = message(OTHER.signer())
    own = dict(message().properties.user)["signer"]
    assert reason(changed(stranger, signer=own)) == "bad_signature"


def test_more_signers_than_are_remembered() -> None:
    signers = [CLUSTER.signer(name=f"o-{number}") for number in range(80)]
    for signer in (*signers, *signers):
        assert VERIFIER.check(message(signer), "orchestrator").by == signer.certificate


def test_the_table_says_what_needs_a_signature() -> None:
    assert SIGNED_BY == {
        "assignment": "orchestrator",
        "cordon": "orchestrator",
        "model_state": "orchestrator",
        "orchestrator_info": "orchestrator",
        "orchestrator_state": "orchestrator",
        "request": "operator",
    }
    admission = Admission(CLUSTER.agent)
    assert admission.closed
    assert admission.check("telemetry", Message(TOPIC, PAYLOAD)) is None
    assert admission.check("assignment", Message(TOPIC, b"")) is None, "it says nothing"
    assert admission.check("assignment", message()) is not None
    with pytest.raises(ForgedError):
        admission.check("assignment", Message(TOPIC, PAYLOAD))
    with pytest.raises(ForgedError):
        admission.check("request", message())


def test_an_open_cluster_checks_and_signs_nothing() -> None:
    admission = Admission(None)
    assert not admission.closed
    assert admission.check("assignment", Message(TOPIC, PAYLOAD)) is None
    assert signer_of(None) is None
    assert signer_of(CLUSTER.agent) is None


# --- tokens


def bundle(credentials: Credentials | None) -> Bundle:
    return Bundle(host="h", port=8883, user="u", password="p", ca="pem", credentials=credentials)


def test_a_token_brings_the_keys() -> None:
    for credentials in (CLUSTER.agent, CLUSTER.authority.credentials("o", "orchestrator"), None):
        assert decode_token(encode_token(bundle(credentials))) == bundle(credentials)


def test_a_token_of_before_is_still_read() -> None:
    old = {"host": "h", "port": 8883, "user": "u", "password": "p", "ca": "pem"}
    import base64

    text = "amp4ec1." + base64.urlsafe_b64encode(encode_json(old)).decode().rstrip("=")
    assert decode_token(text) == bundle(None)


def test_only_orchestrators_have_the_secret_and_all_the_same() -> None:
    one, two = (CLUSTER.authority.credentials(name, "orchestrator") for name in ("a", "b"))
    assert one.secret == two.secret
    assert one.key != two.key
    assert one.secret not in {one.key, one.authority, None}
    assert CLUSTER.authority.credentials("x", "operator").secret is None
    again = Authority.load(CLUSTER.authority.pem()).credentials("c", "orchestrator")
    assert again.secret == one.secret
    assert OTHER.authority.credentials("a", "orchestrator").secret != one.secret


def test_secrets_are_not_printed() -> None:
    credentials = CLUSTER.authority.credentials("o", "orchestrator")
    assert credentials.key is not None
    assert credentials.secret is not None
    for text in (repr(credentials), repr(bundle(credentials))):
        assert credentials.key not in text
        assert credentials.secret not in text


def test_damaged_keys() -> None:
    good = CLUSTER.authority.credentials("o", "orchestrator")
    assert good.certificate is not None
    other = replace(decode_json(good.certificate, Certificate), key=OPERATOR.certificate.key)
    for bad in (
        replace(good, key="00"),
        replace(good, key="zz" * 32),
        replace(good, key="00" * 32),
        replace(good, certificate="{}"),
        replace(good, certificate=encode_json(other).decode()),
    ):
        with pytest.raises(ConfigurationError, match="token"):
            signer_of(bad)
    for authority in ("", "00", "zz" * 32):
        with pytest.raises(ConfigurationError, match="token"):
            Verifier(authority)
    for pem in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(ConfigurationError, match="damaged"):
            Authority.load(pem)


def test_a_client_needs_no_cryptography_and_an_agent_is_told_where_to_get_it() -> None:
    token = encode_token(bundle(CLUSTER.authority.credentials("o", "orchestrator")))
    script = f"""
import sys
sys.modules["cryptography"] = None
import amp4ec, shared.client.client
from shared.bus import BrokerUrl
from shared.errors import ConfigurationError
from shared.signing import Admission, signer_of
url = BrokerUrl.parse({token!r})
for use in (Admission, signer_of):
    try:
        use(url.credentials)
    except ConfigurationError as error:
        assert "amp4ec[agent]" in str(error), error
    else:
        raise SystemExit("it did without")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
