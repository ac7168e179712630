#!/bin/sh
# Makes build/vllm-env: the trainer together with vLLM's CPU engine, for `rollout.generator: vllm` and `make test-vllm`.
# An environment of its own, because vLLM pins transformers and others more narrowly than we do; .venv stays untouched.
# With a GPU this is not needed: install vllm==0.32.* beside the trainer as its own documentation says.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${VLLM_VENV:-build/vllm-env}
pins=tools/vllm-requirements.txt
torch=$(sed -n 's/^torch==//p' constraints.txt)

stamp=$(cat "$pins" pyproject.toml "$0" | cksum)torch$torch
[ "$(cat "$venv/.done" 2>/dev/null)" != "$stamp" ] || exit 0
[ "$(uname -sm)" = "Linux x86_64" ] || {
    echo "set-up of vLLM: its CPU engine comes ready-made for Linux on x86_64 only; this is $(uname -sm)" >&2
    exit 2
}
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "set-up of vLLM: Python 3.11 to 3.13 is needed; $python is $("$python" --version 2>&1). Give another with PYTHON=..." >&2
    exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv --without-pip "$venv"
rm -f "$venv/.done"
pip() { "$python" -m pip --python "$venv/bin/python" "$@"; }

if ! "$venv/bin/python" -c "import torch; assert torch.__version__ == '$torch+cpu'" 2>/dev/null; then
    echo "set-up of vLLM: torch $torch, CPU build"
    # Where the configured indexes lack the CPU build, uv knows where it is kept.
    pip install -q --no-deps "torch==$torch+cpu" 2>/dev/null || {
        pip install -q uv
        "$venv/bin/uv" pip install -q --no-deps --python "$venv/bin/python" --torch-backend cpu "torch==$torch"
    }
fi
echo "set-up of vLLM: everything else"
pip install -q --no-deps -r "$pins"
pip install -q --no-deps -e .
echo "$stamp" >"$venv/.done"
