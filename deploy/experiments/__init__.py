"""The experiments: one command each, raw data as JSON lines, tables and drawings made from these."""
