"""A real cluster under load while things break: `python -m tests.cluster.chaos`.

`schedule` draws faults from a seed and `faults` makes them on a `plant`; `load` asks and keeps the books
(`ledger`), `samples` has the whole model's answers, `usage` and `retained` watch processes and broker;
`checks` says which promises held; `report` and `drawing` show it.
"""
