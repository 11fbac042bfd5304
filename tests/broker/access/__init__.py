"""The access matrix: every role tries every topic, every way, over TLS against a real closed broker.

    python -m tests.broker.access [--json FILE] [--draw FILE.png]

`rules` says what is right, written by hand and not derived from `broker.access`; `matrix` finds out what is
so; `tests/broker/test_access.py` holds the two together.
"""
