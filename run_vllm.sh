#!/usr/bin/env bash
# The main job: evaluates a model with and without SLOT as a YAML file says.
#   bash run_vllm.sh --config configs/quickstart.yaml [--set key=value ...] [--output-dir DIR] [--resume]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$(bash "$root/scripts/setup.sh")
PATH="$(dirname "$python"):$PATH"
exec "$python" -m slot_vllm.evaluation "$@"
