#!/bin/sh
# Installs what the viewer's tests in a real browser need beside Python: Debian's chromium, and fonts-dejavu-core, without
# which it has no letters. Nothing to do where there is a chromium: then it is done at once.
set -eu
packages="chromium fonts-dejavu-core"

if command -v chromium >/dev/null; then
    echo "browser: $(command -v chromium)"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "browser: no apt-get here; install Chromium as \`chromium\` by this system's own means, or go without: the viewer's tests in a browser are skipped then" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "browser: only root may install packages; run: sudo apt-get update && sudo apt-get install --no-install-recommends $packages" >&2
    exit 1
fi
apt-get update
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $packages
