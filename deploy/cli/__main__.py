"""`python -m deploy.cli`: the command without an installed script, as `amp4ec up` starts its children."""

from deploy.cli import main

if __name__ == "__main__":
    main()
