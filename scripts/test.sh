#!/usr/bin/env bash
# Runs the tests in the environment of demo.sh; arguments are passed on to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$python" -m pytest "$@"
