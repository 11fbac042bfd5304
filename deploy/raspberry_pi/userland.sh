#!/usr/bin/env bash
# See the agent install and live in a 64-bit Arm userland (Debian arm64 under qemu), without a device.
#
#   sudo ./deploy/raspberry_pi/userland.sh [DIRECTORY] [SUITE]
#
# DIRECTORY (default /var/tmp/amp4ec-arm64) gets the userland and the wheels, 1 GB, and is used again by the
# next run; SUITE is Debian's (default bookworm, Python 3.11; trixie has 3.13). Needs root, mosquitto with its
# clients, and Debian's packages debootstrap and qemu-user-static. Some ten minutes the first time, on two
# cores: too slow for every commit, so no test runs it.
#
# In it: wheels for aarch64 only (nothing is compiled), installation without an index, a birth that says
# aarch64, a calibration by ONNX Runtime, and telemetry to a broker on this machine's loopback.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/install.sh

base=${1:-/var/tmp/amp4ec-arm64}
suite=${2:-bookworm}
system=$base/$suite
python=${AMP4EC_PYTHON:-.venv/bin/python}
node=arm64-userland

[ "$(id -u)" = 0 ] || fail "this makes a chroot: run it as root"
for program in debootstrap qemu-aarch64-static mosquitto_sub "$python"; do
    command -v "$program" >/dev/null || fail "$program is missing: install debootstrap, qemu-user-static \
and mosquitto-clients, and make .venv (deploy/test.sh does) or name a Python in AMP4EC_PYTHON"
done

registered=""
mounted=""
started=""
finish() {
    for pid in $started; do kill "$pid" 2>/dev/null && wait "$pid" || true; done
    mountpoint -q "$system/proc" && umount "$system/proc"
    if [ -n "$registered" ]; then echo -1 >"$binfmt/$registered"; fi
    if [ -n "$mounted" ]; then umount "$binfmt"; fi
}
binfmt=/proc/sys/fs/binfmt_misc
trap finish EXIT

say "Arm programs run under qemu"
if [ ! -e $binfmt/register ]; then
    mount -t binfmt_misc none $binfmt
    mounted=yes
fi
if [ ! -e $binfmt/qemu-aarch64 ]; then
    # Debian's own line; F keeps the interpreter open, so that the chroot needs no copy of it.
    cat /usr/lib/binfmt.d/qemu-aarch64.conf >$binfmt/register
    registered=qemu-aarch64
fi

if [ ! -e "$system/usr/bin/python3" ]; then
    say "Debian $suite for arm64 (300 MB, some minutes)"
    mkdir -p "$base"
    debootstrap --arch=arm64 --variant=minbase --include=python3,python3-venv "$suite" "$system" \
        >"$base/debootstrap.log" || fail "debootstrap failed; see $base/debootstrap.log"
fi
mountpoint -q "$system/proc" || mount -t proc proc "$system/proc"
# Words of a command line and not a function, so that what runs in the background is what is ended.
inside="env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 chroot $system"
echo "   $($inside uname -m), $($inside python3 --version)"

say "Wheels for it"
wheels=$system/wheels
rm -rf "$wheels"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" .
# The list of amp4ec[agent,onnx] has no condition on the machine: pip would judge it by this one.
"$python" -m pip download --quiet --dest "$wheels" --only-binary=:all: --implementation cp \
    --python-version "$($inside python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')" \
    --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 \
    "$(echo "$wheels"/amp4ec-*.whl)[agent,onnx]"
echo "   $(find "$wheels" -name '*.whl' | wc -l) wheels, $(du -sh "$wheels" | cut -f1)"

say "Installation, from those alone"
rm -rf "$system/opt/amp4ec"
$inside python3 -m venv /opt/amp4ec
$inside /opt/amp4ec/bin/pip install --quiet --no-index --find-links /wheels 'amp4ec[agent,onnx]'
echo "   $(du -sh "$system/opt/amp4ec" | cut -f1) on disk"

say "A broker on loopback, the agent in the userland, and what comes from it"
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$python" -m deploy.cli broker --port "$port" 2>"$base/broker.log" &
started=$!
$inside /opt/amp4ec/bin/amp4ec agent --broker "mqtt://127.0.0.1:$port" --name "$node" --cache-dir /tmp/cache \
    2>"$base/agent.log" &
started="$! $started"
hear() { mosquitto_sub -p "$port" -t "amp4ec/v1/node/$node/$1" -C "$2" -W 300; }
while ! birth=$(hear state 1 2>/dev/null); do sleep 1; done
echo "$birth" | grep -q '"architecture":"aarch64"' || fail "no birth of an aarch64 node: $birth"
echo "   birth: $birth"
echo "   telemetry: $(hear telemetry 1)"
# The first birth has no calibration yet; it is told again with one.
for _ in $(seq 300); do
    birth=$(hear state 1)
    case $birth in *'"calibration":{"onnxruntime"'*) break ;; esac
    sleep 1
done
case $birth in
    *'"calibration":{"onnxruntime"'*) echo "   calibrated: $(echo "$birth" | grep -o '"calibration":.*}}') (under qemu)" ;;
    *) fail "ONNX Runtime did not calibrate; see $base/agent.log" ;;
esac
say "An amp4ec agent installs and runs on 64-bit Arm"
