#!/usr/bin/env bash
# Runs the tests in the environment of demo.sh, a process on each core; arguments are passed on to pytest, such as
# -m "not slow" (the fast ones only) or -n 0 (in one process).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$python" -m pytest -n auto --dist loadfile "$@"
