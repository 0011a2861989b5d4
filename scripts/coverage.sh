#!/bin/bash
# Measures which lines of the emulator's semantics its tests execute, and fails below a share of them.
#
# usage: scripts/coverage.sh [PERCENT]
#
# Builds the tests with instrumentation, runs them, and lists lines covered by file: emulator/src/insn, decode, deliver,
# descriptor, operand, paging, stack, task. PERCENT is what must be reached (95). The profile tools are those of the
# toolchain: rustup component add llvm-tools.
set -euo pipefail

cd "$(dirname "$0")/.."
wanted=${1:-95}
target=${CARGO_TARGET_DIR:-target}/coverage
tools=$(dirname "$(rustc --print target-libdir)")/bin

fail() { echo "coverage: $*" >&2; exit 1; }

[ -x "$tools/llvm-profdata" ] || fail "no llvm-profdata: rustup component add llvm-tools"

rm -rf "$target/profiles"
mkdir -p "$target/profiles"
case $target in /*) ;; *) target=$PWD/$target ;; esac
# Only what is ours counts, and what it leans on runs at full speed.
printf '#!/bin/sh\nexec "$@" -Cinstrument-coverage\n' > "$target/rustc"
chmod +x "$target/rustc"
export RUSTC_WORKSPACE_WRAPPER=$target/rustc LLVM_PROFILE_FILE="$target/profiles/%p-%m.profraw"
tests=(cargo --config profile.dev.package.reprise-emulator.opt-level=1 test -p reprise-emulator --lib --bins --tests --no-run)
binaries=$("${tests[@]}" --message-format=json | grep -o '"executable":"[^"]*"' | cut -d'"' -f4 | sort -u)
for binary in $binaries; do
    case $binary in
        */deps/*) (cd emulator && "$binary") || echo "coverage: $binary failed" >&2 ;;
    esac
done
# A sandboxed child that is killed leaves an empty profile.
find "$target/profiles" -size 0 -delete
"$tools/llvm-profdata" merge -sparse "$target"/profiles/*.profraw -o "$target/merged.profdata"
objects=()
for binary in $binaries; do objects+=(-object "$binary"); done
"$tools/llvm-cov" export --summary-only -instr-profile="$target/merged.profdata" "${objects[@]}" > "$target/summary.json"

python3 - "$target/summary.json" "$wanted" <<'PYTHON'
import json, re, sys

files = json.load(open(sys.argv[1]))["data"][0]["files"]
semantics = re.compile(r"emulator/src/(insn|decode|deliver|descriptor|operand|paging|stack|task)(/|\.rs)")
rows = [(f["filename"], f["summary"]["lines"]) for f in files if semantics.search(f["filename"])]
rows = [row for row in rows if not row[0].endswith("tests.rs")]
for name, lines in sorted(rows, key=lambda row: row[1]["percent"]):
    print(f"{lines['percent']:6.2f} % {lines['covered']:6} of {lines['count']:6}  {name[name.index('emulator/'):]}")
covered, count = (sum(lines[key] for _, lines in rows) for key in ("covered", "count"))
percent = 100 * covered / max(count, 1)
print(f"{percent:6.2f} % {covered:6} of {count:6}  all")
sys.exit(percent < float(sys.argv[2]))
PYTHON
