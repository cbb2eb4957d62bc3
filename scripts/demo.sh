#!/usr/bin/env bash
# The main job on scikit-learn's handwritten digits: every experiment of configs/demo, then the report.
# Writes results/demo; arguments are passed on to scripts/reproduce.py. Run it again to resume.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$python" scripts/reproduce.py configs/demo "$@"
