#!/bin/sh
# Writes requirements.lock again from pyproject.toml, for every system and every
# Python from 3.11 on, with the hashes of all files. What is already locked stays
# as it is; `sh scripts/lock.sh --upgrade` takes the newest versions.

set -eu
cd "$(dirname "$0")/.."

if ! command -v uv >/dev/null 2>&1; then
    [ -x build/lock/bin/uv ] || {
        .venv/bin/python -m venv build/lock
        build/lock/bin/python -m pip --disable-pip-version-check install --quiet uv
    }
    PATH="$PWD/build/lock/bin:$PATH"
fi
uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
    --generate-hashes --no-strip-extras --no-header --quiet --output-file requirements.lock "$@"
