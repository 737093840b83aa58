#!/usr/bin/env bash
# The main job: evaluates a model with and without SLOT as a YAML file says.
set -euo pipefail

usage() {
    cat <<'END'
usage: bash run_vllm.sh --config FILE [--set KEY=VALUE ...] [--output-dir DIR] [--resume | --overwrite]

Evaluates a model with and without SLOT as a YAML file says (docs/evaluation.md). The first time it
sets up an environment: SLOT_VENV, or the active virtual environment, or .venv.

  --config FILE        a run (YAML)
  --set KEY=VALUE ...  lays values over the file's: generation.temperature=0 arms.slot.lr=0.2
  --output-dir DIR     default: logs/ and the run's name
  --resume             continue a run; it may get more arms and problems
  --overwrite          replace the run that the directory holds, once this one is done
  -h, --help           this text

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.

examples:
  bash run_vllm.sh --config configs/quickstart.yaml
  bash run_vllm.sh --config configs/gsm8k.yaml --set arms.slot.lr=0.05 --output-dir logs/lr0.05
END
}
for argument in "$@"; do
    case $argument in -h | --help) usage; exit ;; esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$(bash "$root/scripts/setup.sh")
PATH="$(dirname "$python"):$PATH"
exec "$python" -m slot_vllm.evaluation "$@"
