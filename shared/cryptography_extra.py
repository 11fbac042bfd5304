"""The `cryptography` package is not in the bare install: clients carry tokens, too, and need none of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import ConfigurationError


@contextmanager
def needs_cryptography() -> Iterator[None]:
    """Import parts of the package in this block.

    Raises:
        ConfigurationError: it is missing; says which extra brings it.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            "the keys in this join token need the cryptography package",
            expected="pip install 'amp4ec[agent]' on a device, 'amp4ec[deploy]' for an operator",
            got=str(error),
        ) from error
