#!/bin/sh
# Run the unit tests of what is compiled with AddressSanitizer and UndefinedBehaviorSanitizer: tools/sanitize.sh BIN [PYTEST-ARGUMENT...]
#
# BIN is the bin directory of the virtual environment. The modules are built into build/sanitize, beside those in use.
# What a sanitizer reports ends the process that it happened in, and so the tests.
set -eu

bin=$1
shift
built=$PWD/build/sanitize/lib
[ $# -gt 0 ] || set -- -q tests/ring tests/device tests/pci_function tests/vfio_user

say() { echo "sanitize: $*"; }

cc=${CC:-cc}
if ! command -v "$cc" >/dev/null; then
    say "no C compiler '$cc': there is nothing compiled to sanitize; install gcc" >&2
    exit 1
fi
preload=""
for library in libasan.so libubsan.so; do
    path=$("$cc" -print-file-name=$library)
    if [ "$path" = $library ]; then
        say "'$cc' has no $library: install gcc and its libraries, or set CC=gcc" >&2
        exit 1
    fi
    preload="$preload${preload:+ }$path"
done

# -O0: a report is about the code as written, and building takes 20 seconds instead of two minutes.
mkdir -p build
CFLAGS="-O0 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" \
    LDFLAGS="-fsanitize=address,undefined" \
    "$bin/python" setup.py -q build --build-base build/sanitize --build-lib "$built" >build/sanitize.log 2>&1 || {
    tail -n 20 build/sanitize.log >&2
    say "the build failed, see build/sanitize.log" >&2
    exit 1
}

# detect_leaks=0: the interpreter leaves much to the end of the process. PYTHONMALLOC: each allocation has its own bounds.
run() {
    env LD_PRELOAD="$preload" PYTHONMALLOC=malloc PYTHONPATH="$built" NODMA_PURE=0 \
        ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 "$bin/python" "$@"
}

# First see that the sanitized build is what runs, and that a read beyond a buffer's end is reported: by the interceptors, ...
run -c '
from pathlib import Path
from nodma.builds import COMPILED_MODULES, load
for name in COMPILED_MODULES:
    file = Path(load(name).__file__)
    assert file.is_relative_to("'"$built"'"), f"{file} is not the sanitized build"
    assert b"__asan_report_load" in file.read_bytes() and b"__ubsan_handle" in file.read_bytes(), f"{file} is not sanitized"
'
if run -c 'import ctypes; ctypes.string_at(ctypes.create_string_buffer(64), 65)' 2>build/sanitize.log; then
    say "a read beyond the end of a buffer was not reported: the sanitizer does not work here" >&2
    exit 1
fi
grep -q 'AddressSanitizer: heap-buffer-overflow' build/sanitize.log

run -m pytest -p no:cacheprovider -p no:faulthandler "$@"
