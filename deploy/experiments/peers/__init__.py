"""AMP4EC beside what somebody would take instead, on the same cores in the same run.

`python -m deploy.experiments.peers` makes an environment for each peer (`environments`), exports the model to
files that all read, starts each system in turn (`run`, `driver`; what runs there is in `drivers`), and keeps
what it measured as records. `systems` is the list.
"""
