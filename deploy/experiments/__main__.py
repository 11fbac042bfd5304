"""`python -m deploy.experiments NAME` is `amp4ec experiment NAME`."""

from __future__ import annotations

import sys

from deploy.cli.app import main

if __name__ == "__main__":
    main(["experiment", *sys.argv[1:]])
