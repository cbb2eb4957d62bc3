#!/usr/bin/env bash
# Makes .venv-peers, an environment of its own with PyTorch and what it is compared with or converted by: torchvision,
# timm, onnx2torch, onnxscript, torch-pruning. It takes about 7 GB, because PyTorch's wheels for Linux bring the
# libraries of GPUs, and needs no GPU. Run again, it brings the environment up to date.
#
#   bash scripts/peers.sh
#   .venv-peers/bin/python scripts/coverage.py --only resnet18
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
room=12 # GB that the installation needs while it is under way

fail() {
    echo "error: $*" >&2
    exit 2
}

base="$(type -p python3.11 || type -p python3.10)" || fail "no Python 3.11 or 3.10 found: install one"
free=$(df --output=avail --block-size=1G . | tail -n 1)
[ "$free" -ge "$room" ] || [ -d .venv-peers ] || fail "$free GB are free here, but $room GB are needed; free some space"
[ -x .venv-peers/bin/python ] || "$base" -m venv .venv-peers || fail "$base could not create $PWD/.venv-peers"
.venv-peers/bin/python -m pip install --disable-pip-version-check --no-input \
    --constraint constraints.txt --editable ".[test,peers]" >&2 ||
    fail "the installation into .venv-peers failed: see pip's message above; run again to retry"
.venv-peers/bin/python -W ignore -c "import torch, torchvision, timm, onnx2torch, torch_pruning; print('torch', torch.__version__)"
