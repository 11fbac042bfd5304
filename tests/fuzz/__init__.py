"""Hostile bytes: every decoder under a fuzzer (`decoders`), and a live cluster under attack (`live`)."""
