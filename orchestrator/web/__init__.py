"""HTTP in the orchestrator's event loop: the page, what feeds it, and what other monitors ask for.

A process that leads and one that stands by serve the same: what is shown comes from the documented topics,
over a connection of this package's own. `server.py` says what a group of routes is. aiohttp is imported here
only, and only where an address to listen on was given.
"""
