#!/bin/sh
# Installs what the tests of `engine: slurm` need beside Python: Debian's munge, slurmctld, slurmd and slurm-client.
# They start their own one (tests/engine/slurm_cluster.py); the services of these packages are not needed, nor started.
set -eu
packages="munge slurmctld slurmd slurm-client"

missing=""
for package in $packages; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "system-deps: $packages: installed"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "system-deps: no apt-get here; install SLURM (slurmctld, slurmd, its commands) and munge by this system's own means, or go without: the tests of engine: slurm are skipped then" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "system-deps: only root may install packages; run: sudo apt-get update && sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
# a service that a package would start, munge with a key that it makes, is not started
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing
