#!/usr/bin/env bash
# Runs ruff, mypy and pytest.
#   bash scripts/test.sh [--full] [arguments of pytest]
# --full adds the long checks and keeps the log under logs/full/.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/scripts/setup.sh")
export PATH="$(dirname "$python"):$PATH"
cd "$root"

failed=0
part() {
    printf '\n== %s\n' "$*"
    "$@" || failed=1
}
part ruff check .
part ruff format --check .
part mypy
if [ "${1:-}" = --full ]; then
    mkdir -p logs/full
    log="logs/full/$(date -u +%Y-%m-%dT%H%M%SZ).log"
    printf 'the log is kept in %s\n' "$log"
    part python -m pytest "$@" 2>&1 | tee "$log"
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
    ! grep -qE '^(FAILED|ERROR) ' "$log" || failed=1
else
    part python -m pytest "$@"
fi
exit "$failed"
