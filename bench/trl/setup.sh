#!/bin/sh
# Makes build/trl-env: TRL in an environment of its own, with the CPU build of torch and what the task of `trainer` imports.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
venv=${VENV:-build/trl-env}
torch=$(sed -n 's/^torch==//p' bench/trl/requirements.txt)

mkdir -p "$(dirname "$venv")"
[ -x "$venv/bin/python" ] || "$python" -m venv --without-pip "$venv"
pip() { "$python" -m pip --python "$venv/bin/python" "$@"; }

# First torch, alone: whatever asks for torch later finds it there and brings no CUDA.
if ! "$venv/bin/python" -c "import torch; assert torch.__version__.split('+')[0] == '$torch'" 2>/dev/null; then
    pip install -q "torch==$torch+cpu" 2>/dev/null || {
        pip install -q uv
        "$venv/bin/uv" pip install -q --python "$venv/bin/python" --torch-backend cpu "torch==$torch"
    }
fi
pip install -q -r bench/trl/requirements.txt
