# What quickstart.sh and test.sh share; read by them with `.`, in the checkout's top folder.
#
#   install_mosquitto       Mosquitto and its clients by the machine's package manager, when missing
#   install_network_tools   ip, bridge and tc, which a few tests need that cut and slow networks; Linux only
#   install_chromium        a browser to test the page in, without windows
#   start_docker            a Docker engine, docker-compose and mmdebstrap, when missing; `stop_docker` ends it
#   make_environment EXTRA  .venv with `.[EXTRA]`; nothing is done when it is there and up to date
#   python                  the environment's Python, afterwards

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root, and there is no sudo: $*"
    fi
}

# install_packages DEBIAN FEDORA ARCH ALPINE BREW: each a list of packages in quotes, empty for none
install_packages() {
    if command -v apt-get >/dev/null; then
        as_root apt-get update -qq
        # shellcheck disable=SC2086 # a list of packages
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $1
    elif command -v dnf >/dev/null; then
        # shellcheck disable=SC2086
        as_root dnf install -y -q $2
    elif command -v pacman >/dev/null; then
        # shellcheck disable=SC2086
        as_root pacman -Sy --noconfirm --needed $3
    elif command -v apk >/dev/null; then
        # shellcheck disable=SC2086
        as_root apk add --quiet $4
    elif command -v brew >/dev/null; then
        # shellcheck disable=SC2086
        brew install --quiet $5
    else
        fail "no package manager that is known here; install by hand: $1"
    fi
}

have_mosquitto() {
    PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "${AMP4EC_MOSQUITTO:-mosquitto}" >/dev/null
}

install_mosquitto() {
    if have_mosquitto && command -v mosquitto_rr >/dev/null; then
        return
    fi
    say "Installing Mosquitto and its clients (1 MB, seconds)"
    install_packages "mosquitto mosquitto-clients" mosquitto mosquitto \
        "mosquitto mosquitto-clients" mosquitto
    have_mosquitto || fail "Mosquitto was installed but is not found"
}

have_network_tools() (
    PATH="$PATH:/usr/sbin:/sbin"
    command -v ip && command -v bridge && command -v tc && command -v nsenter
) >/dev/null

install_network_tools() {
    if [ "$(uname -s)" != Linux ] || have_network_tools; then
        return
    fi
    say "Installing network tools (iproute2 and util-linux, 2 MB, seconds)"
    install_packages "iproute2 util-linux" "iproute iproute-tc util-linux" "iproute2 util-linux" \
        "iproute2 util-linux" ""
}

have_faketime() (
    ls /usr/lib/*/faketime/libfaketimeMT.so.1 || ls /usr/lib*/faketime/libfaketimeMT.so.1
) >/dev/null 2>&1

install_faketime() {
    if [ "$(uname -s)" != Linux ] || have_faketime; then
        return
    fi
    say "Installing libfaketime, for tests that set clocks (100 kB, seconds)"
    install_packages faketime libfaketime libfaketime libfaketime ""
}

have_chromium() {
    command -v chromium || command -v chromium-browser || command -v google-chrome-stable ||
        command -v google-chrome
}

install_chromium() {
    have_chromium >/dev/null && return
    say "Installing Chromium, for tests of the page (100 MB, a minute)"
    install_packages "chromium fonts-dejavu-core" chromium chromium chromium ""
}

have_docker() { docker version >/dev/null 2>&1; }

# Fails where no engine can run. mmdebstrap makes base images, iptables is what dockerd makes networks with.
start_docker() {
    docker_pid=
    if ! (have_docker && command -v docker-compose && command -v mmdebstrap) >/dev/null; then
        say "Installing a Docker engine (docker.io, docker-compose, mmdebstrap: 70 MB, a minute)"
        (install_packages "docker.io docker-compose iptables mmdebstrap" \
            "moby-engine docker-compose iptables mmdebstrap" \
            "docker docker-compose iptables mmdebstrap" "docker docker-cli-compose iptables" "") || return 1
    fi
    have_docker && return
    if [ "$(id -u)" != 0 ]; then
        echo "no Docker engine answers, and only root can start one: sudo systemctl start docker" >&2
        return 1
    fi
    log=$(mktemp)
    setsid dockerd >"$log" 2>&1 </dev/null &
    docker_pid=$!
    for _ in $(seq 60); do
        have_docker && return
        kill -0 "$docker_pid" 2>/dev/null || break
        sleep 1
    done
    tail -n 20 "$log" >&2
    echo "dockerd does not start; above is the end of its log" >&2
    return 1
}

# Only what start_docker started.
stop_docker() {
    if [ -n "${docker_pid:-}" ] && kill "$docker_pid" 2>/dev/null; then wait "$docker_pid" || true; fi
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for name in ${AMP4EC_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if command -v "$name" >/dev/null && new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    fail "this needs Python 3.11 or later; name one in AMP4EC_PYTHON"
}

# Debian and its kin have venv in a package of its own.
need_venv() {
    if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        say "Installing what Python needs to make environments"
        minor=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        install_packages "python$minor-venv" python3-pip python-pip py3-pip python
    fi
}

# On x86 the registry's torch is a CUDA build. Ask pip what it would take, before it does.
announce_torch() {
    .venv/bin/python -c 'import torch' 2>/dev/null && return
    report=$(mktemp)
    if ! .venv/bin/pip install --quiet --dry-run --report "$report" "$torch" >/dev/null 2>&1; then
        echo "   to download: 0.2 GB for a CPU build of torch, about 3 GB for a CUDA build"
    elif grep -qi '"name": *"nvidia-' "$report"; then
        echo "   to download: about 3 GB (7 GB on disk), since pip finds the CUDA build of torch here."
        echo "   The CPU build is 0.2 GB: the README says how to get it (Ctrl-C now; nothing is lost)."
        if [ -t 0 ]; then sleep 10; fi
    else
        echo "   to download: about 0.3 GB (1 GB on disk); pip finds the CPU build of torch here"
    fi
    rm -f "$report"
}

make_environment() {
    extra=$1
    stamp=.venv/amp4ec-$extra
    wanted=$(cksum <pyproject.toml)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && new_enough .venv/bin/python; then
        say "The environment .venv is up to date"
        return
    fi
    say "Making the environment .venv (1 to 20 minutes the first time, mostly downloads)"
    if ! new_enough .venv/bin/python; then
        interpreter=$(find_python)
        need_venv "$interpreter"
        "$interpreter" -m venv --clear .venv
    fi
    torch=$(sed -n 's/^torch = \["\(torch==[^"]*\)".*/\1/p' pyproject.toml | head -n 1)
    announce_torch
    # torch first and alone: torchvision asks for exactly this version of whatever build is there.
    .venv/bin/pip install --quiet --disable-pip-version-check "$torch"
    .venv/bin/pip install --quiet --disable-pip-version-check --editable ".[$extra]"
    printf '%s' "$wanted" >"$stamp"
}

python() { .venv/bin/python "$@"; }
