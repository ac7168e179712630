#!/bin/sh
# Sets everything up in .venv: pinned packages, and a torch without gigabytes of CUDA on a machine that has no GPU.
# Needs Python 3.11 to 3.13 and pip; not the venv module's own pip, which Debian ships apart.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${VENV:-.venv}
torch=$(sed -n 's/^torch==//p' constraints.txt)

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "set-up: Python 3.11 to 3.13 is needed; $python is $("$python" --version 2>&1). Give another with PYTHON=..." >&2
    exit 2
}
"$python" -m pip --version >/dev/null 2>&1 || {
    echo "set-up: $python has no pip. On Debian: apt install python3-pip" >&2
    exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv --without-pip "$venv"
pip() { "$python" -m pip --python "$venv/bin/python" "$@"; }

if ! "$venv/bin/python" -c "import torch; assert torch.__version__.split('+')[0] == '$torch'" 2>/dev/null; then
    if [ -n "$(command -v nvidia-smi || true)" ] || [ "$(uname -sm)" != "Linux x86_64" ]; then
        echo "set-up: torch $torch"
        pip install -q "torch==$torch"
    else
        echo "set-up: torch $torch, CPU build"
        # The plain version would bring CUDA. Where the configured indexes lack the CPU build, uv knows where it is kept.
        pip install -q "torch==$torch+cpu" 2>/dev/null || {
            pip install -q uv
            "$venv/bin/uv" pip install -q --python "$venv/bin/python" --torch-backend cpu "torch==$torch"
        }
    fi
fi
echo "set-up: everything else"
pip install -q -c constraints.txt -e '.[trainer,cluster,math,data,postgres,server,tune,dev]'
touch "$venv/.done"
