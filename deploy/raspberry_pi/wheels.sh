#!/usr/bin/env bash
# Whether everything an agent needs has a wheel for 64-bit Arm: nothing would be compiled on the device.
#
#   ./deploy/raspberry_pi/wheels.sh
#
# Asks the package index that pip is set up with, through uv (extra `dev`), which judges conditions by the device's
# machine and not by this one's, as pip would. Downloads no packages, only what they ask for. Python 3.11 is that of
# Raspberry Pi OS 12 (bookworm), 3.13 that of 13 (trixie). Exit status 1 where something has no wheel.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${AMP4EC_PYTHON:-.venv/bin/python}

failed=0
for version in 3.11 3.13; do
    for runtime in onnx torch; do
        printf 'Python %s, amp4ec[agent,%s]: ' "$version" "$runtime"
        if ! wanted=$("$python" -m uv pip compile pyproject.toml --extra agent --extra "$runtime" --quiet \
            --python-platform aarch64-manylinux_2_28 --python-version "$version" --only-binary :all: \
            --no-header --no-annotate 2>&1); then
            printf 'no\n%s\n' "$wanted"
            failed=1
            continue
        fi
        printf '%s wheels' "$(printf '%s\n' "$wanted" | wc -l)"
        if printf '%s\n' "$wanted" | grep -q '^nvidia-'; then
            printf ', CUDA libraries among them: take the CPU build of torch from its own index'
        fi
        printf '\n'
    done
done
exit $failed
