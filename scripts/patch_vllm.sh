#!/usr/bin/env bash
# Puts SLOT's hooks into a copy of vLLM, or takes them out again (patches/README.md).
#   bash scripts/patch_vllm.sh check|apply|revert [--target DIR]
# DIR contains vllm/ and is by default where `python` finds it; the release is read from
# vllm/_version.py there. check: exit code 0 if the patch is applied or can be. apply keeps what it
# changes in DIR/vllm/.slot_vllm_backup, and revert puts that back.
set -euo pipefail

patches=$(cd "$(dirname "${BASH_SOURCE[0]}")/../patches" && pwd)
say() { printf 'patch_vllm: %s\n' "$*"; }
fail() { printf 'patch_vllm: error: %s\n' "$*" >&2; exit 1; }
usage() { printf 'usage: bash scripts/patch_vllm.sh check|apply|revert [--target DIR]\n' >&2; exit 2; }

command=${1:-}
[[ $command == check || $command == apply || $command == revert ]] || usage
shift
target=
while [ $# -gt 0 ]; do
    case $1 in
        --target) [ $# -gt 1 ] || usage; target=$2; shift 2 ;;
        *) usage ;;
    esac
done
if [ -z "$target" ]; then
    # Found, not imported.
    target=$(python -c 'import importlib.util as u, pathlib as p; print(p.Path(u.find_spec("vllm").origin).parents[1])' 2>/dev/null) ||
        fail "python finds no vllm; name the folder that contains it: --target DIR"
fi
version_file="$target/vllm/_version.py"
[ -f "$version_file" ] || fail "$target has no vllm/_version.py"
version=$(sed -n "s/^__version__ = .*'\([0-9][0-9.]*\).*'.*/\1/p" "$version_file")
patch="$patches/vllm-$version.patch"
supported=$(cd "$patches" && printf '%s ' vllm-*.patch | sed 's/vllm-\([0-9.]*\)\.patch/\1/g')
[ -f "$patch" ] || fail "no patch for vLLM ${version:-of unknown version} in $target; there is one for: $supported"
backup="$target/vllm/.slot_vllm_backup"

# A file's hash as the patch's index lines have it; nothing for one that is not there.
hash_of() {
    [ ! -e "$1" ] || { printf 'blob %d\0' "$(stat -c %s "$1")"; cat "$1"; } | sha1sum | cut -d ' ' -f 1
}

# Lines of "path, hash before, hash after".
files=$(awk '/^diff --git/ { sub("b/", "", $4); path = $4 } /^index / { split($2, h, "[.][.]"); print path, h[1], h[2] }' "$patch")
clean=() patched=() dirty=()
while read -r path before after; do
    found=$(hash_of "$target/$path")
    if [ "$found" = "$before" ]; then clean+=("$path")
    elif [ "$found" = "$after" ]; then patched+=("$path")
    else dirty+=("$path"); fi
done <<<"$files"
kept=
[ ! -d "$backup" ] || kept="; originals are in $backup"
[ ${#dirty[@]} -eq 0 ] ||
    fail "neither as vLLM $version has them nor as the patch leaves them: ${dirty[*]} (in $target); nothing was changed$kept"
in_part=
if [ ${#clean[@]} -gt 0 ] && [ ${#patched[@]} -gt 0 ]; then
    in_part=yes
    [ "$command" = revert ] ||
        fail "applied in part: ${patched[*]} (in $target), as after an interruption or a reinstall of vLLM; nothing was changed; revert takes it out$kept"
fi
needs_patch() { command -v patch >/dev/null || fail "the command patch is not installed; nothing was changed"; }

# Puts back what was changed, from the backup; nothing if one of the originals is not there.
restore() {
    local path before after
    while read -r path before after; do
        [ "$(hash_of "$target/$path")" = "$after" ] || continue
        [ "$(hash_of "$backup/$path")" = "$before" ] ||
            fail "$path is patched, and its original is not in $backup; nothing was changed; reinstall vLLM $version"
    done <<<"$files"
    while read -r path before after; do
        [ "$(hash_of "$target/$path")" = "$after" ] || continue
        cp -p "$backup/$path" "$target/$path"
    done <<<"$files"
}

case $command in
    check)
        if [ ${#patched[@]} -gt 0 ]; then say "vLLM $version in $target: applied"
        else say "vLLM $version in $target: not applied, can be"; fi
        ;;
    apply)
        if [ ${#patched[@]} -gt 0 ]; then say "vLLM $version in $target: applied already"; exit 0; fi
        needs_patch
        patch --directory="$target" --strip=1 --fuzz=0 --force --dry-run --quiet <"$patch" >/dev/null ||
            fail "the patch does not apply to $target; nothing was changed"
        rm -rf "$backup"
        for path in "${clean[@]}"; do
            mkdir -p "$backup/$(dirname "$path")"
            cp -p "$target/$path" "$backup/$path"
        done
        patch --directory="$target" --strip=1 --fuzz=0 --force --quiet --no-backup-if-mismatch <"$patch"
        say "vLLM $version in $target: applied; the originals are in $backup"
        ;;
    revert)
        if [ ${#patched[@]} -eq 0 ]; then say "vLLM $version in $target: not applied"; exit 0; fi
        if [ -n "$in_part" ]; then
            restore
        else
            needs_patch
            patch --directory="$target" --strip=1 --fuzz=0 --force --quiet --reverse --no-backup-if-mismatch <"$patch"
        fi
        rm -rf "$backup"
        say "vLLM $version in $target: reverted"
        ;;
esac
