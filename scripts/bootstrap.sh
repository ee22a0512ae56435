#!/bin/sh
# Makes .venv and installs into it what requirements.lock names, and xsc itself.
#
# Run by `make` before everything else; does nothing where nothing has changed.
# It needs Python 3.11 or newer, and says in one line what to do without it. On
# Debian and Ubuntu, run as root, it installs the missing Debian package itself.

set -eu
cd "$(dirname "$0")/.."

say() {
    printf '%s\n' "$*" >&2
}

fail() {
    say "error: $1"
    [ $# -lt 2 ] || say "hint: $2"
    exit 1
}

is_debian_root() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1
}

install_debian() {
    say "installing the Debian packages $* (once)…"
    apt-get update -qq >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null </dev/null
}

# The newest Python that all wheels exist for comes first. A command is run, not
# only looked up: version managers leave commands on the path that start nothing.
find_python() {
    for command in python3.13 python3.12 python3.11 python3; do
        if "$command" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s' "$command"
            return 0
        fi
    done
    return 1
}

make_venv() {
    if ! python=$(find_python); then
        is_debian_root || fail "XSC needs Python 3.11 or newer, and found none" \
            "on Debian or Ubuntu: sudo apt-get install -y python3 python3-venv"
        install_debian python3 python3-venv
        python=$(find_python) || fail "this system's Python is older than 3.11" \
            "install Python 3.11 or newer (python.org, or uv python install 3.13), then run this again"
    fi
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        package=$("$python" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')
        is_debian_root || fail "this Python cannot make virtual environments" \
            "on Debian or Ubuntu: sudo apt-get install -y $package"
        install_debian "$package"
    fi
    say "making .venv with $("$python" --version)…"
    rm -rf .venv
    "$python" -m venv .venv
}

# A virtual environment holds absolute paths: one that was copied or moved is
# made again, and so is one whose Python is gone.
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 ||
    ! grep -qF "$(pwd -P)" .venv/bin/activate; then
    make_venv
fi

stamp=.venv/xsc-installed
wanted=$(cat requirements.lock pyproject.toml scripts/bootstrap.sh | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

pip() {
    .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"
}

say "installing $(grep -c '^[a-z0-9].*==' requirements.lock) packages into .venv (once, about a minute)…"
pip install --quiet --quiet --require-hashes --requirement requirements.lock
pip install --quiet --quiet --no-build-isolation --no-deps --editable .
printf '%s\n' "$wanted" >"$stamp"
say "done"
