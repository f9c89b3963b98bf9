#!/bin/sh
# Hold the branch coverage of the device's side to PERCENT, package by package: tools/coverage.sh BIN PERCENT
#
# The interpreted build is measured, in every thread and child process, under all tests that run without a guest's
# kernel and that those packages are for. The figures and the lines that no test reaches are in build/coverage.
set -eu

bin=$1
percent=$2
packages="ring device pci_function vfio_user window hosting"

rm -rf build/coverage
mkdir -p build/coverage
# Children are found by the same settings, wherever they are started.
export COVERAGE_RCFILE="$PWD/pyproject.toml" COVERAGE_FILE="$PWD/build/coverage/data" NODMA_PURE=1 HYPOTHESIS_PROFILE=brief
"$bin/coverage" run -m pytest -q -p no:cacheprovider -o timeout=300 \
    tests/ring tests/device tests/pci_function tests/vfio_user tests/window tests/hosting tests/driver \
    tests/cli/test_serve.py tests/cli/test_serve_slot.py
"$bin/coverage" combine -q
failed=0
for package in $packages; do
    "$bin/coverage" report --include="src/nodma/$package/*" >"build/coverage/$package.txt"
    if "$bin/coverage" report --include="src/nodma/$package/*" --fail-under="$percent" >/dev/null; then
        echo "coverage: $package $(grep ^TOTAL "build/coverage/$package.txt" | grep -o "[0-9.]*%")"
    else
        cat "build/coverage/$package.txt"
        echo "coverage: $package is below $percent%" >&2
        failed=1
    fi
done
exit $failed
