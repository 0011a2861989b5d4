#!/usr/bin/env bash
# Measures snapshot and restore of a Debian guest that idles at its shell, side by side with dd.
#
# usage: scripts/bench-snapshot.sh
#
#   RUNS=N      how often each is measured (5); medians are printed
#   DIR=DIR     where snapshots are written: a folder on the disk to measure (target/bench)
#   MEMORY=SIZE the guest's memory (512M)
#
# A snapshot is compared with `dd conv=fsync` writing as many bytes as the guest has used pages: both write to a free name
# on the same disk, both end when everything has reached it, they take turns, and the disk rests for two seconds before each, for
# virtual ones let through so much at once and then less. Restoring is
# measured from the start of the process to the first byte that the guest prints in answer to a key, which is later than
# its first instruction; the events tell how long the restore itself took.
set -euo pipefail

cd "$(dirname "$0")/.."
runs=${RUNS:-5}
memory=${MEMORY:-512M}
reprise=${CARGO_TARGET_DIR:-target}/release/reprise
guest=target/guest

fail() { echo "bench-snapshot: $*" >&2; exit 1; }

cargo build --release --locked --quiet --package reprise-vmm --bin reprise
scripts/guest.sh >/dev/null
mkdir -p "${DIR:-target/bench}"
dir=$(mktemp -d "${DIR:-target/bench}/snapshot.XXXXXX")
socket=$dir/api
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$dir"' EXIT

median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
ctl() { "$reprise" ctl --api-socket "$socket" "$@"; }

# Prints how many seconds the command takes, the disk being idle before.
seconds() {
    sync -f "$dir"
    sleep 2
    local start=$EPOCHREALTIME
    "$@" >/dev/null 2>&1 || fail "failed: $*"
    awk -v start="$start" -v end="$EPOCHREALTIME" 'BEGIN { printf "%.4f\n", end - start }'
}

boot() {
    coproc machine { exec "$reprise" run --hypervisor soft --memory "$memory" --serial tty --api-socket "$socket" \
        --kernel "$guest/vmlinux" --initramfs "$guest/initramfs.cpio.gz" --cmdline console=ttyS0 2>/dev/null; }
    local text
    while IFS= read -r -t 300 text <&"${machine[0]}"; do
        [[ $text == *"reprise: shell ready"* ]] && break
    done
    sleep 3
    ctl pause
}

# Milliseconds from the start of `reprise run --restore` with the arguments $@ to the first byte that the guest prints.
first_byte() {
    local start=$EPOCHREALTIME byte
    coproc restored { exec "$reprise" run --serial tty --event-monitor "path=$dir/events" --restore "$dir/snapshot" "$@" 2>/dev/null; }
    local pid=$restored_PID
    echo >&"${restored[1]}"
    IFS= read -r -N 1 -t 60 byte <&"${restored[0]}" || fail "the restored guest says nothing"
    awk -v start="$start" -v end="$EPOCHREALTIME" 'BEGIN { printf "%.1f\n", 1000 * (end - start) }'
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

# Milliseconds between the events restoring and restored.
restoring() {
    awk '/"event":"restor/ { match($0, /"secs":[0-9]+/); s = substr($0, RSTART + 7, RLENGTH - 7)
        match($0, /"nanos":[0-9]+/); t = s * 1000 + substr($0, RSTART + 8, RLENGTH - 8) / 1000000
        if (/restoring/) begun = t; else printf "%.1f\n", t - begun }' "$dir/events"
}

bench_snapshot() {
    local ours=() theirs=() run used
    ctl snapshot "$dir/snapshot"
    used=$(($(stat -c %b "$dir/snapshot/memory") * 512))
    head -c "$used" /dev/urandom >"$dir/used"
    for ((run = 1; run <= runs; run++)); do
        ours+=("$(seconds ctl snapshot "$dir/next")")
        rm -rf "$dir/next"
        theirs+=("$(seconds dd if="$dir/used" of="$dir/copy" bs=1M conv=fsync)")
        rm -f "$dir/copy"
        echo "run $run: snapshot ${ours[-1]} s, dd ${theirs[-1]} s" >&2
    done
    local a b
    a=$(printf '%s\n' "${ours[@]}" | median)
    b=$(printf '%s\n' "${theirs[@]}" | median)
    awk -v a="$a" -v b="$b" -v used="$used" \
        'BEGIN { printf "snapshot of %.1f MiB used: %.3f s, dd %.3f s, ratio %.2f\n", used / 1048576, a, b, a / b }'
}

# Says $1 and measures restores with the arguments $3…, doing $2 before each.
bench_restore() {
    local what=$1 before=$2 whole=() calls=() run
    shift 2
    for ((run = 1; run <= runs; run++)); do
        $before
        whole+=("$(first_byte "$@")")
        calls+=("$(restoring)")
        echo "run $run, $what: first byte after ${whole[-1]} ms, restored in ${calls[-1]} ms" >&2
    done
    echo "restore, $what: $(printf '%s\n' "${calls[@]}" | median) ms," \
        "to the guest's first byte $(printf '%s\n' "${whole[@]}" | median) ms"
}

drop_caches() { echo 3 >/proc/sys/vm/drop_caches; }

boot
bench_snapshot
ctl shutdown-vmm
wait
bench_restore "lazily" true
bench_restore "all at once" true --prefault
if drop_caches 2>/dev/null; then
    bench_restore "lazily, from the disk" drop_caches
fi
