# Sourced by demo.sh and test.sh: goes to the top folder, makes .venv there unless it is already right,
# and sets $python and OMP_NUM_THREADS. What the user can put right ends in one line on stderr and exit 2.
#
# .venv/installed is written last, so an installation killed half-way is started afresh by the next run.
# It holds two hashes: of the interpreter and place, and of the files that say what to install.
# .venv.lock is held while installing, by pip too, so two runs at once (or a run after a kill that left
# pip alive) wait for each other.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="$PWD/.venv/bin/python"

fail() {
    echo "error: $*" >&2
    exit 2
}

# Prints the first interpreter that is of a fitting version and really runs: a name on PATH may be a
# launcher for a version that is not there, and Debian ships venv apart from Python.
find_python() {
    local version candidate without_venv=""
    for version in 3.11 3.10 3.9; do
        while IFS= read -r candidate; do
            "$candidate" -c "import sys; sys.exit(sys.version_info[:2] != (${version/./, }))" \
                </dev/null >/dev/null 2>&1 || continue
            if "$candidate" -c "import venv, ensurepip" </dev/null >/dev/null 2>&1; then
                echo "$candidate"
                return
            fi
            without_venv="${without_venv:-$version}"
        done < <(type -ap "python$version")
    done
    if [ -n "$without_venv" ]; then
        fail "python$without_venv cannot create virtual environments: install python$without_venv-venv" \
            "(Debian, Ubuntu: apt-get install python$without_venv-venv)"
    fi
    fail "no Python 3.11, 3.10 or 3.9 found: install one" \
        "(Debian, Ubuntu: apt-get install python3.11 python3.11-venv)"
}

# Prints what .venv/installed should hold; nothing if .venv has no interpreter that runs.
stamp() {
    "$python" -c '
import hashlib, pathlib, sys
place = repr((sys.version, sys.prefix)).encode()
files = b"".join(pathlib.Path(name).read_bytes() for name in ("setup.py", "constraints.txt"))
print(*(hashlib.sha256(text).hexdigest() for text in (place, files)))' 2>/dev/null || true
}

is_installed() {
    [ -s .venv/installed ] && [ "$(cat .venv/installed)" = "$(stamp)" ]
}

install() {
    local base old new
    base="$(find_python)" || exit $?
    { exec 9>.venv.lock; } 2>/dev/null || fail "cannot write to $PWD"
    "$base" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another installation into .venv to finish", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)'
    if ! is_installed; then
        old="$(cat .venv/installed 2>/dev/null || true)"
        new="$(stamp)"
        rm -f .venv/installed .venv/checked
        # A finished environment of this interpreter and place is brought up to date where it is, so that
        # a run under way keeps its modules; anything else is made anew.
        if [ -z "$new" ] || [ "${old%% *}" != "${new%% *}" ]; then
            echo "creating .venv with $base" >&2
            "$base" -m venv --clear .venv >&2 || fail "$base could not create $PWD/.venv"
        fi
        echo "installing the package and its dependencies into .venv (once, takes a few minutes)" >&2
        "$python" -m pip install --disable-pip-version-check --no-input \
            --constraint constraints.txt --editable ".[test]" >&2 ||
            fail "the installation into .venv failed: see pip's message above; run again to retry"
        stamp >.venv/installed.new
        mv .venv/installed.new .venv/installed
    fi
    exec 9>&- # what runs afterwards must not hold the lock
}

# Imports once what a slim system image may lack libraries for, and names the packages that have them.
check_imports() {
    local message missing
    if ! message="$("$python" -W ignore -c "import cv2, mxnet, gluoncv" 2>&1)"; then
        missing="$("$python" -c '
import ctypes
packages = {"libgomp.so.1": "libgomp1", "libquadmath.so.0": "libquadmath0", "libGL.so.1": "libgl1",
            "libglib-2.0.so.0": "libglib2.0-0", "libgthread-2.0.so.0": "libglib2.0-0"}
missing = []
for library, package in packages.items():
    try:
        ctypes.CDLL(library)
    except OSError:
        missing.append(package)
print(*dict.fromkeys(missing))')"
        if [ -n "$missing" ]; then
            fail "shared libraries are missing: install $missing (Debian, Ubuntu: apt-get install $missing)"
        fi
        fail "mxnet and gluoncv cannot be imported (${message##*$'\n'}): remove .venv and run again"
    fi
    touch .venv/checked
}

is_installed || install
# With MXNet's own default, one thread per logical core, it runs at about half speed.
if [ -z "${OMP_NUM_THREADS:-}" ]; then
    OMP_NUM_THREADS="$("$python" -c "from gcp.runtime import physical_cores; print(physical_cores())")"
fi
export OMP_NUM_THREADS
[ -f .venv/checked ] || check_imports
