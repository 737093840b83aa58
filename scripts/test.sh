#!/usr/bin/env bash
# Runs ruff, mypy and pytest.
#   bash scripts/test.sh [--quick | --full] [--durations] [arguments of pytest]
# --quick leaves out what starts an engine, a server or a Python process: for while one writes.
# --full adds the long checks and keeps the log under logs/full/.
# --durations shows where the time went: seconds, engines, servers and processes.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/scripts/setup.sh")
PATH="$(dirname "$python"):$PATH"
cd "$root"

# Two processes, mostly whole files each: a third one gained next to nothing on two cores.
# In the order of collection, which has long ones first.
pytest=(python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder)
full=
for argument in "$@"; do
    case $argument in
        --durations) pytest+=(-p tests.durations) ;;
        --full) full=1 && pytest+=("$argument") ;;
        *) pytest+=("$argument") ;;
    esac
done

failed=0
part() {
    printf '\n== %s\n' "$*"
    "$@" || failed=1
}
logged() { "$@" 2>&1 | tee "$log"; }

part ruff check .
part ruff format --check .
part mypy
if [[ $full ]]; then
    mkdir -p logs/full
    log="logs/full/$(date -u +%Y-%m-%dT%H%M%SZ).log"
    part logged "${pytest[@]}"
    printf 'the log is kept in %s\n' "$log"
else
    part "${pytest[@]}"
fi
exit "$failed"
