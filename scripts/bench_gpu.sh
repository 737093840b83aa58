#!/usr/bin/env bash
# All benchmarks of one CUDA machine in under 10 minutes, correctness first: what is wrong stops it.
# Writes logs/bench/*_gpu*.json and the table of them, logs/bench/gpu.md.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fail() { printf 'bench_gpu: error: %s\n' "$*" >&2; exit 1; }
[[ $(nvidia-smi --list-gpus 2>/dev/null || true) == *GPU* ]] || fail "no NVIDIA GPU (nvidia-smi lists none)"
python=$(bash "$root/scripts/setup.sh")
PATH="$(dirname "$python"):$PATH"
cd "$root"
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || fail "torch sees no CUDA device; its driver or build does not fit"

began=$SECONDS
python -m pytest -x -q tests/kernels tests/optim >&2 || fail "wrong results; nothing was measured"
for load in 512x1 4096x1 128x8; do
    output="logs/bench/optimize_gpu_$load.json"
    python -m slot_vllm.bench optimize --device cuda --hidden 3584 --vocab 152064 --tokens "${load%x*}" --requests "${load#*x}" \
        --workspace-mb 2048 --oracle on --output "$output" >&2
    python -c 'import json, sys; v = json.load(open(sys.argv[1]))["variants"]; sys.exit(not v["ours"]["largest_difference"] <= v["published"]["largest_difference"])' "$output" ||
        fail "$output: our deltas are farther from the float64 oracle than the published loop's"
done
# 64 prompts at once, without SLOT and with it for all.
for steps in 0 5; do
    python -m vllm.entrypoints.cli.main bench latency --model configs/shapes/qwen2.5-7b \
        --load-format dummy --skip-tokenizer-init --disable-detokenize --max-model-len 2304 \
        --batch-size 64 --input-len 150 --output-len 2048 --num-iters-warmup 1 --num-iters 2 \
        --worker-extension-cls slot_vllm.SlotWorkerExtension \
        --additional-config "{\"slot\": {\"steps\": $steps, \"delta_cache_mb\": 0}}" \
        --output-json "logs/bench/latency_gpu_qwen2.5-7b_steps$steps.json" >&2
done

python -m slot_vllm.bench table logs/bench/optimize_gpu*.json | tee logs/bench/gpu.md
python - <<'END' | tee -a logs/bench/gpu.md
import json
without, slot = (
    json.load(open(f"logs/bench/latency_gpu_qwen2.5-7b_steps{steps}.json"))["avg_latency"]
    for steps in (0, 5)
)
print(f"\n64 requests, 150 tokens in, 2048 out: {without:.1f} s, with SLOT {slot:.1f} s ({slot / without:.3f})")
END
printf 'bench_gpu: %d s; the table is logs/bench/gpu.md\n' $((SECONDS - began)) >&2
