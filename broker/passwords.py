"""Passwords as Mosquitto keeps them: `user:$7$iterations$salt$hash`, PBKDF2 with SHA-512.

The form is that of `mosquitto_passwd` (Mosquitto 2.0, `password_mosq.c`); written here so that the program is
not needed where the set-up is made, and no password stands on a command line.
"""

from __future__ import annotations

import base64
import hashlib
import secrets

ITERATIONS = 101
"""Mosquitto's own default. Our passwords are 192 random bits, which no number of iterations could help."""
_SALT_BYTES = 12


def new_password() -> str:
    """192 random bits as text that needs no quoting anywhere."""
    return secrets.token_urlsafe(24)


def password_line(user: str, password: str, salt: bytes | None = None) -> str:
    """One line of a password file."""
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    fields = ("7", str(ITERATIONS), _base64(salt), _base64(digest))
    return f"{user}:${'$'.join(fields)}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
