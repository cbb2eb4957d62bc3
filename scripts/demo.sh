#!/usr/bin/env bash
# The main job on the part of Fashion-MNIST that comes with the package: every experiment of configs/demo, two at a
# time, then the report. Writes results/demo; arguments are passed on to scripts/reproduce.py, such as --seeds 0,1,2.
# Run it again to resume.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$python" scripts/reproduce.py configs/demo --jobs 2 "$@"
