"""`python -m tests.fuzz decoders|live`: see the modules of these names, and `--help` behind either."""

from __future__ import annotations

import sys
from importlib import import_module

_COMMANDS = ("decoders", "live")


def main() -> int:
    """Run the command; its exit status."""
    if sys.argv[1:2] and sys.argv[1] in _COMMANDS:
        # Imported here: the decoders are instrumented while they are imported.
        status: int = import_module(f"tests.fuzz.{sys.argv[1]}").main(sys.argv[2:])
        return status
    print(f"{__doc__}\nusage: python -m tests.fuzz {{{','.join(_COMMANDS)}}} [--help]")
    return 2


if __name__ == "__main__":
    sys.exit(main())
