#!/usr/bin/env bash
# From a fresh clone to answers: installs what is missing, then tells the story of deploy/quickstart.py.
# Safe to run twice, and to interrupt. Arguments go to the story: --weights none, for instance.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/install.sh

cat <<'TEXT'
AMP4EC quickstart: three unequal agents on one broker share one model, and one of them is killed.
It installs Mosquitto and a Python environment (.venv, here) when they are missing, and takes about
half a minute beyond that. The weights of the model (14 MB) are downloaded where that can be done.
Everything it starts is stopped at the end.
TEXT

install_mosquitto
make_environment agent,orchestrator,deploy
say "The cluster"
exec .venv/bin/python -m deploy.quickstart "$@"
