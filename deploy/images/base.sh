#!/usr/bin/env bash
# Makes the images that ours are built upon, where no image registry can be reached:
#
#   deploy/images/base.sh
#
#   localhost/amp4ec-base             Debian 12 and its Python 3.11; stands for python:3.11-slim-bookworm
#   localhost/amp4ec-mosquitto-base   the same with Mosquitto; stands for eclipse-mosquitto:2
#
# They are of the machine's own architecture. Needs root, mmdebstrap (Debian, Ubuntu and their kin have it), a Debian
# mirror that this machine reaches (AMP4EC_DEBIAN_MIRROR names another than the usual one), and a Docker engine.
# Takes 30 to 90 seconds. `amp4ec docker build` and `amp4ec up --docker` take these images where they are there.
set -euo pipefail

base=localhost/amp4ec-base
mosquitto=localhost/amp4ec-mosquitto-base
mirror=${AMP4EC_DEBIAN_MIRROR:-http://deb.debian.org/debian}

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "this needs root: sudo $0"
command -v mmdebstrap >/dev/null || fail "there is no mmdebstrap: apt-get install mmdebstrap"
docker version >/dev/null 2>&1 || fail "no Docker engine answers: start dockerd, or set DOCKER_HOST"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/debs"
chmod 755 "$work"

# Documentation and translations have no reader in a container, and a tree that is made with one /usr needs no Perl to
# become so. Mosquitto's packages are fetched on the way, while the tree still knows where from.
# shellcheck disable=SC2016 # mmdebstrap runs the hooks, with the tree as $1
mmdebstrap --quiet --variant=minbase --include=python3,ca-certificates,usr-is-merged \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --aptopt='Acquire::Retries "3"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -f "$1"/var/cache/apt/archives/*.deb' \
    --customize-hook='chroot "$1" apt-get -qq install --download-only --no-install-recommends mosquitto' \
    --customize-hook="copy-out /var/cache/apt/archives $work/debs" \
    bookworm "$work/base.tar" "$mirror"

docker import --change 'CMD ["python3"]' "$work/base.tar" "$base" >/dev/null
mkdir "$work/context"
mv "$work"/debs/archives/*.deb "$work/context/"
docker build --quiet --tag "$mosquitto" --file - "$work/context" >/dev/null <<DOCKERFILE
FROM $base
COPY *.deb /debs/
RUN dpkg --install /debs/*.deb && rm -rf /debs
DOCKERFILE
docker image ls --format '{{.Repository}} {{.Size}}' "$base"
docker image ls --format '{{.Repository}} {{.Size}}' "$mosquitto"
