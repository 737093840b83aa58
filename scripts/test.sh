#!/usr/bin/env bash
# Runs ruff, mypy and pytest.
#   bash scripts/test.sh [--full] [arguments of pytest]
# --full adds the long checks and keeps the log under logs/full/.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/scripts/setup.sh")
PATH="$(dirname "$python"):$PATH"
cd "$root"

# Two processes, whole files each: what a test spends on imports and interpreters fills one core.
pytest=(python -m pytest --numprocesses 2 --dist loadfile)
failed=0
part() {
    printf '\n== %s\n' "$*"
    "$@" || failed=1
}
logged() { "$@" 2>&1 | tee "$log"; }

part ruff check .
part ruff format --check .
part mypy
if [[ " $* " == *" --full "* ]]; then
    mkdir -p logs/full
    log="logs/full/$(date -u +%Y-%m-%dT%H%M%SZ).log"
    part logged "${pytest[@]}" "$@"
    printf 'the log is kept in %s\n' "$log"
else
    part "${pytest[@]}" "$@"
fi
exit "$failed"
