#!/usr/bin/env bash
# The checks as CI runs them: installs what is missing, then lint, types, fence and layers.
#
#   deploy/test.sh               the layers core, wire, shell, broker and cluster
#   deploy/test.sh LAYER...      these
#   deploy/test.sh containers    a Docker engine, images and containers
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/install.sh

layers="${*:-core wire shell broker cluster}"
cat <<TEXT
AMP4EC tests: lint, types, import fence, then the layers: $layers.
About 20 minutes on two cores, once Mosquitto and the environment (.venv, here) are installed. The layer of
containers is a command of its own (deploy/test.sh containers, about 4 minutes, two of them for base images
that stay): it installs a Docker engine and makes images.
TEXT

install_mosquitto
install_network_tools
install_faketime
install_chromium
make_environment dev

logs=$(mktemp -d)
trap 'stop_docker; rm -rf "$logs"' EXIT
case " $layers " in
*" containers "*)
    # Base images are made meanwhile: mostly downloads. Who is not root needs a registry instead. Without an
    # engine the layer fails, and says why.
    bases="localhost/amp4ec-base localhost/amp4ec-mosquitto-base"
    # shellcheck disable=SC2086 # two words
    if start_docker && [ "$(id -u)" = 0 ] && ! docker image inspect $bases >/dev/null 2>&1; then
        deploy/images/base.sh >"$logs/base-images" 2>&1 &
        base_images=$!
    fi
    ;;
esac

say "Lint (seconds)"
python -m ruff check .
python -m ruff format --check .
say "Types (a minute)"
python -m mypy
say "Import fence (seconds)"
.venv/bin/lint-imports

failed=""
for layer in $layers; do
    say "Tests: $layer"
    if [ "$layer" = containers ] && [ -n "${base_images:-}" ]; then
        wait "$base_images" || { cat "$logs/base-images"; failed="$failed base-images"; }
        rm -f "$logs/base-images"
    fi
    case $layer in
    # What the pure cores are covered by says most when the pure tests alone do it.
    core) how="--numprocesses 2 --dist worksteal --cov --cov-report=" ;;
    # A file's tests share the models that they import; a broker's mostly wait.
    shell | broker) how="--numprocesses 2 --dist loadfile" ;;
    # What runs three agents wants both cores for itself.
    *) how="" ;;
    esac
    # shellcheck disable=SC2086 # several words
    if ! python -m pytest "tests/$layer" -q --durations 8 --durations-min 5 $how 2>&1 | tee "$logs/$layer"; then failed="$failed $layer"; fi
    if [ "$layer" = core ]; then
        say "Coverage of the pure cores"
        python -m coverage report --skip-covered --fail-under=95 \
            --include='orchestrator/core/*,edge_agent/core/*' || failed="$failed coverage"
    fi
    # A layer that was skipped as a whole proves nothing.
    grep -Eq '(^|[^0-9])[1-9][0-9]* passed' "$logs/$layer" || failed="$failed $layer(nothing-ran)"
done

say "Summary"
for layer in $layers; do printf '%-10s %s\n' "$layer" "$(tail -n 1 "$logs/$layer")"; done
count() { tail -qn 1 "$logs"/* | grep -Eo "[0-9]+ $1" | awk '{ sum += $1 } END { print sum + 0 }'; }
if [ -n "$failed" ]; then
    echo "failed:$failed"
    echo "== $(count failed) failed, $(count passed) passed, $(count skipped) skipped in ${SECONDS}s =="
    exit 1
fi
echo "== $(count passed) passed, $(count skipped) skipped in ${SECONDS}s =="
