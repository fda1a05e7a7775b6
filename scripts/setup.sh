#!/usr/bin/env bash
# Make the environment: scripts/setup.sh cpu|gpu [FOLDER, default .venv]. `make env` calls it.
#
# Repeating it is safe: it takes up where an earlier call was interrupted, and downloads
# nothing that is already there. pip's own settings (pip.conf, PIP_*) are honoured. Where
# the CPU build of torch is not found that way, it is taken from $TORCH_INDEX, by default
# PyTorch's own index.
set -euo pipefail

kind=${1:?say cpu or gpu}
venv=${2:-.venv}
torch=2.13.0
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

# Bytecode belongs to the environment, whatever the user's shell says of it: without it every
# process compiles what it imports anew, six seconds of a learner's start.
unset PYTHONDONTWRITEBYTECODE

step() { printf '==> %s\n' "$*"; }
# --no-compile: bytecode of what is really imported is made at the first import, in a
# quarter of the time that compiling all of it takes.
install() { "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-compile --no-deps "$@"; }

if [ -e "$venv/kind" ] && [ "$(cat "$venv/kind")" != "$kind" ]; then
    echo "$venv was made for $(cat "$venv/kind"), not $kind: run \`make clean-env\` first" >&2
    exit 1
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    step "new environment in $venv"
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "darts needs Python 3.11 or later; name one with PYTHON=..." >&2
        exit 1
    }
    "${PYTHON:-python3}" -m venv "$venv"
fi
echo "$kind" >"$venv/kind"
PATH="$(cd "$venv" && pwd)/bin:$PATH" # uv_build and ninja are looked up there
export PATH

step "pip and build tools"
install --require-hashes -r requirements/build.txt

if [ "$kind" = cpu ]; then
    step "torch $torch, CPU build"
    install "torch==$torch+cpu" 2>"$venv/torch.log" || {
        echo "    not in pip's usual places; from $torch_index" >&2
        install --index-url "$torch_index" "torch==$torch+cpu" || {
            cat "$venv/torch.log" >&2
            echo "no CPU build of torch $torch found: set TORCH_INDEX to an index that has it" >&2
            exit 1
        }
    }
fi

step "$(grep -c '==' "requirements/$kind.txt") locked packages (requirements/$kind.txt), about a minute"
DS_BUILD_OPS=0 install --require-hashes --no-build-isolation -r "requirements/$kind.txt"

step "darts itself, editable"
install --no-build-isolation --editable .

if [ "$kind" = cpu ]; then
    step "DeepSpeed's shared-memory op: compiled here, once, so that no run has to wait for it"
    TORCH_EXTENSIONS_DIR="$(cd "$venv" && pwd)/torch_extensions" \
        "$venv/bin/python" -m learner.deepspeed.shm_op
fi

step "first import of torch, transformers, vllm, deepspeed"
DS_ACCELERATOR=$([ "$kind" = cpu ] && echo cpu || echo cuda) \
    "$venv/bin/python" - <<'PY'
import time
started = time.monotonic()
import torch, transformers, vllm, deepspeed
import learner.deepspeed.engine, transformers.masking_utils, vllm.v1.engine.async_llm  # as a run does
print(f"    torch {torch.__version__}, transformers {transformers.__version__}, "
      f"vllm {vllm.__version__}, deepspeed {deepspeed.__version__} "
      f"({time.monotonic() - started:.0f} s)")
PY
