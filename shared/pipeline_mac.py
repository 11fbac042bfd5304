"""Who may feed a pipeline: every activation and result of one carries a MAC made with the pipeline's key.

The orchestrator derives the key from its secret, pipeline and generation, so that its successor, with the
same secret, has the same; an assignment brings it to the nodes of that pipeline and to nobody else. What does
not verify is dropped and counted, as if it had been lost on the way.

The MAC is Poly1305 with a key for this message alone, which keyed BLAKE2b makes of a random nonce and the
topic (what secretbox does, without the encryption). It travels as the user property `mac`: 16 bytes of nonce
and 16 of tag, in hexadecimal. The payload is read where it lies.

It was chosen by measuring, in us for 31 / 75 / 300 KB on an x86 core, and again with the processor's crypto
and vector instructions hidden from OpenSSL, which is nearer to a Raspberry Pi 4 (it has no AES and no SHA):
this 7 / 10 / 28 and 12 / 23 / 79; HMAC-SHA256 19 / 44 / 171 and 84 / 201 / 795; keyed BLAKE2b 34 / 81 / 326
both times; GMAC 3 / 5 / 15 and 55 / 131 / 523.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import replace

from shared.bus.message import Message, Properties
from shared.cryptography_extra import needs_cryptography

_PROPERTY = "mac"
_NONCE_BYTES = 16
_TAG_BYTES = 16
_HEX_DIGITS = 2 * (_NONCE_BYTES + _TAG_BYTES)
_MOST_PIPELINES = 256


class PipelineMac:
    """Makes and checks the MACs of one pipeline's messages.

    Args:
        key: 32 bytes.

    Raises:
        ConfigurationError: the `cryptography` package is missing.
    """

    def __init__(self, key: bytes) -> None:
        with needs_cryptography():
            from cryptography.hazmat.primitives.poly1305 import Poly1305
        self._generate = Poly1305.generate_tag
        self._key = key

    def seal(
        self,
        topic: str,
        payload: bytes | bytearray | memoryview,
        properties: Properties | None = None,
    ) -> Properties:
        """`properties`, and the one that proves a message to the pipeline's other nodes.

        A seal that is in there already, of the message that this one follows from, is replaced.
        """
        nonce = secrets.token_bytes(_NONCE_BYTES)
        mac = (_PROPERTY, (nonce + self._tag(nonce, topic, payload)).hex())
        if properties is None:
            return Properties(user=(mac,))
        beside = (pair for pair in properties.user if pair[0] != _PROPERTY)
        return replace(properties, user=(*beside, mac))

    def holds(self, message: Message) -> bool:
        """Whether a message was sealed with this key, for its topic and as it is."""
        given = message.properties.user_value(_PROPERTY)
        if given is None or len(given) != _HEX_DIGITS:
            return False
        try:
            mac = bytes.fromhex(given)
        except ValueError:
            return False
        nonce, tag = mac[:_NONCE_BYTES], mac[_NONCE_BYTES:]
        return hmac.compare_digest(tag, self._tag(nonce, message.topic, message.payload))

    def _tag(self, nonce: bytes, topic: str, payload: bytes | bytearray | memoryview) -> bytes:
        # Poly1305 gives its key away when that is used twice: one for each nonce.
        once = hashlib.blake2b(nonce + topic.encode(), key=self._key, digest_size=32).digest()
        return self._generate(once, payload)


class PipelineKeys:
    """The orchestrator's side: the key of every pipeline, derived from its secret of 32 bytes.

    Raises:
        ConfigurationError: the `cryptography` package is missing.
    """

    def __init__(self, secret: bytes, root: str) -> None:
        self._secret = secret
        self._root = root
        self._macs: OrderedDict[tuple[str, int], PipelineMac] = OrderedDict()

    def key(self, pipeline: str, generation: int) -> bytes:
        """32 bytes that only who knows the secret can compute. None of the names has a NUL."""
        text = f"{self._root}\0{pipeline}\0{generation}".encode()
        return hashlib.blake2b(
            text, key=self._secret, digest_size=32, person=b"amp4ec pipeline"
        ).digest()

    def mac(self, pipeline: str, generation: int) -> PipelineMac:
        """The MAC of one pipeline's messages."""
        found = self._macs.get((pipeline, generation))
        if found is None:
            found = self._macs[pipeline, generation] = PipelineMac(self.key(pipeline, generation))
            if len(self._macs) > _MOST_PIPELINES:
                self._macs.popitem(last=False)
        return found
