#!/bin/sh
# Installs the programs that the tests in tests/apps run, where this is Debian and run as root.
# Without them those tests are skipped, and pytest's summary says so.

set -eu
there=yes
for program in promtool tmux chromium nft ip wg wireguard-go; do
    command -v "$program" >/dev/null 2>&1 || there=no
done
if [ "$there" = yes ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    exit 0
fi
packages="prometheus tmux chromium fonts-dejavu-core nftables iproute2 wireguard-tools wireguard-go"
printf '%s\n' "installing the Debian packages $packages (once)…" >&2
apt-get update -qq >/dev/null
# A service is not to start by itself: the tests start their own. A policy that is there stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null </dev/null
