#!/bin/bash
# Measures which lines of the emulator's semantics its tests execute, and fails below a share of them.
#
# usage: scripts/coverage.sh [PERCENT]
#
# Builds the tests with instrumentation, runs them (their output goes to standard error), and lists the lines that no test
# executes and the share of those that one does, by file: emulator/src/insn, decode, deliver, descriptor, operand, paging,
# stack, task. PERCENT is what must be reached (95). Both take about five minutes of two idle cores each, and 3 GB in the target
# folder. The profile tools are those of the toolchain: rustup component add llvm-tools. Without Bochs (apt-get install bochs)
# AVX-512 is compared with nothing, and most of it is not covered.
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
failed=0
for binary in $binaries; do
    case $binary in
        */deps/*) (cd emulator && "$binary" >&2) || { echo "coverage: $binary failed" >&2; failed=$((failed + 1)); } ;;
    esac
done
# A sandboxed child that is killed leaves an empty profile.
find "$target/profiles" -size 0 -delete
"$tools/llvm-profdata" merge -sparse "$target"/profiles/*.profraw -o "$target/merged.profdata"
objects=()
for binary in $binaries; do objects+=(-object "$binary"); done
"$tools/llvm-cov" export -format=lcov -instr-profile="$target/merged.profdata" "${objects[@]}" > "$target/lines.lcov"

python3 - "$target/lines.lcov" "$wanted" <<'PYTHON'
import itertools, re, sys

semantics = re.compile(r"emulator/src/(insn|decode|deliver|descriptor|operand|paging|stack|task)(/|\.rs)")
files, lines = {}, {}
for line in open(sys.argv[1]):
    if line.startswith("SF:"):
        name = line[3:].strip()
        wanted = semantics.search(name) and not name.endswith("tests.rs")
        lines = files.setdefault(name, {}) if wanted else {}
    elif line.startswith("DA:"):
        number, count = line[3:].split(",")[:2]
        lines[int(number)] = max(lines.get(int(number), 0), int(count))

def share(lines):
    covered = sum(count > 0 for count in lines.values())
    return f"{100 * covered / max(len(lines), 1):6.2f} % {covered:6} of {len(lines):6}"

def short(name):
    return name[name.index("emulator/"):]

print("not covered:")
for name, lines in sorted(files.items()):
    source = open(name).read().splitlines()
    missing = (number for number, count in sorted(lines.items()) if count == 0)
    for _, run in itertools.groupby(enumerate(missing), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in run]
        place = f"{short(name)}:{run[0]}" + (f"-{run[-1]}" if len(run) > 1 else "")
        text = source[run[0] - 1].strip()
        if len(run) > 1 or text not in ("}", "})", "});"):
            print(f"    {place}: {text}")
print("covered:")
for name, lines in sorted(files.items(), key=lambda file: share(file[1])):
    print(f"{share(lines)}  {short(name)}")
everything = {(name, number): count for name, lines in files.items() for number, count in lines.items()}
print(f"{share(everything)}  all")
percent = 100 * sum(count > 0 for count in everything.values()) / max(len(everything), 1)
sys.exit(percent < float(sys.argv[2]))
PYTHON
[ "$failed" = 0 ] || fail "$failed of the tests' binaries failed"
