#!/usr/bin/env bash
# Serves models/demo with SLOT on http://127.0.0.1:8000, for examples/openai_client.py. SLOT is for
# requests that ask for it.
#   bash scripts/serve_demo.sh [more options of vllm serve, such as --port 8001]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/scripts/setup.sh")
exec "$(dirname "$python")/vllm" serve "$root/models/demo" --served-model-name demo \
    --host 127.0.0.1 --port 8000 \
    --enforce-eager --kv-cache-memory-bytes $((1 << 28)) \
    --worker-extension slot_vllm "$@"
