#!/bin/sh
# Set nodma up for development in a virtual environment: tools/setup.sh PYTHON VENV
#
# Needs Python 3.11 or newer. As root on Debian or Ubuntu it installs what is missing: e2fsprogs for the demo, pciutils
# for two tests, a C compiler for the ring. Elsewhere it says so; without a compiler the ring runs interpreted.
set -eu

python=$1
venv=$2

say() { echo "setup: $*"; }

usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

for candidate in "$python" python3 python3.14 python3.13 python3.12 python3.11; do
    if usable "$candidate"; then
        python=$candidate
        break
    fi
done
if ! usable "$python"; then
    say "Python 3.11 or newer is needed, and is neither '$python' nor elsewhere on PATH." >&2
    say "Install it, or name it: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
fi

packages=""
command -v mke2fs >/dev/null || packages="$packages e2fsprogs"
command -v lspci >/dev/null || packages="$packages pciutils"
command -v "${CC:-cc}" >/dev/null || packages="$packages gcc libc6-dev"
"$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"
"$python" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    packages="$packages python3-dev"
if [ -n "$packages" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing$packages (apt-get)"
        log=$(mktemp)
        # shellcheck disable=SC2086 # a list of packages
        if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages; } \
            >"$log" 2>&1; then
            tail -n 5 "$log" >&2
            say "apt-get failed, see above" >&2
            exit 1
        fi
        rm -f "$log"
    else
        say "missing:$packages. The demo needs e2fsprogs; without pciutils two tests are skipped, without a compiler and"
        say "Python's headers the ring runs interpreted."
    fi
fi

if [ ! -x "$venv/bin/python" ]; then
    say "making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi
say "installing nodma and what its tests need (a minute at most)"
"$venv/bin/python" -m pip install -q --upgrade "pip>=25.1"
"$venv/bin/python" -m pip install -q --group dev -e ".[guest]"
"$venv/bin/python" -c 'from nodma.ring import COMPILED; print("setup: the ring is", "compiled" if COMPILED
    else "interpreted: no C compiler was found, or it failed; all works, slower")'
