#!/bin/bash
# Measures how long Debian's kernel takes to the initramfs' first line, in Reprise's soft CPU and in QEMU's TCG; and how
# much faster two busy shells are on two vCPUs than on one.
#
# usage: scripts/bench-boot.sh [boot|smp]
#
# Both boot the same vmlinux and initramfs with 1 vCPU and 512 MiB, in turn, RUNS times each (5), and the medians are
# compared. QEMU is Debian's qemu-system-x86, machine microvm; without ACPI, for with it QEMU's microvm has no timer that
# this kernel calibrates its clocks with under TCG. QEMU=FILE takes another one.
set -euo pipefail

cd "$(dirname "$0")/.."
runs=${RUNS:-5}
qemu=${QEMU:-qemu-system-x86_64}
reprise=${CARGO_TARGET_DIR:-target}/release/reprise
cmdline="console=ttyS0 reprise.quiet"
first_line="reprise: init reached"

fail() { echo "bench-boot: $*" >&2; exit 1; }

if ! command -v "$qemu" >/dev/null; then
    [ "$(id -u)" = 0 ] || fail "please install qemu-system-x86"
    apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends qemu-system-x86 seabios >&2
fi
cargo build --release --locked --quiet --package reprise-vmm --bin reprise
scripts/guest.sh >/dev/null
guest=target/guest

# Runs the command $2… and prints how many seconds pass until its output has line $1; then ends it.
seconds_to_line() {
    local line=$1 start=$EPOCHREALTIME end='' text
    shift
    coproc machine { exec "$@" </dev/null 2>/dev/null; }
    local pid=$machine_PID
    while IFS= read -r -t 120 text <&"${machine[0]}"; do
        if [[ $text == *"$line"* ]]; then
            end=$EPOCHREALTIME
            break
        fi
    done
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    [ -n "$end" ] || fail "no line \"$line\" from: $*"
    awk -v start="$start" -v end="$end" 'BEGIN { printf "%.3f\n", end - start }'
}

median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

in_reprise() {
    seconds_to_line "$1" "$reprise" run --hypervisor soft --cpus "$2" --memory 512M --serial tty \
        --kernel "$guest/vmlinux" --initramfs "$guest/initramfs.cpio.gz" --cmdline "$3"
}

in_qemu() {
    seconds_to_line "$1" "$qemu" -machine microvm,acpi=off -accel tcg -cpu max -smp "$2" -m 512 \
        -kernel "$guest/vmlinux" -initrd "$guest/initramfs.cpio.gz" -append "$3" \
        -nodefaults -no-user-config -no-reboot -display none -serial stdio
}

bench_boot() {
    local ours=() theirs=() run
    for ((run = 1; run <= runs; run++)); do
        ours+=("$(in_reprise "$first_line" 1 "$cmdline")")
        theirs+=("$(in_qemu "$first_line" 1 "$cmdline")")
        echo "run $run: reprise-soft ${ours[-1]} s, qemu-tcg ${theirs[-1]} s" >&2
    done
    local a b
    a=$(printf '%s\n' "${ours[@]}" | median)
    b=$(printf '%s\n' "${theirs[@]}" | median)
    awk -v a="$a" -v b="$b" 'BEGIN { printf "boot reprise-soft %.2f s, qemu-tcg %.2f s, ratio %.2f\n", a, b, a / b }'
}

# Two busy shells at once; the guest itself measures.
bench_smp() {
    local work='busy() { i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; }; t0=$(cut -d" " -f1 /proc/uptime);
        busy & busy & wait; t1=$(cut -d" " -f1 /proc/uptime); echo busy $t0 $t1;'
    local one=() two=() run cpus
    for ((run = 1; run <= runs; run++)); do
        for cpus in 1 2; do
            local took
            took=$(busy_time "$cpus" "$work")
            if [ "$cpus" = 1 ]; then one+=("$took"); else two+=("$took"); fi
        done
        echo "run $run: 1 vCPU ${one[-1]} s, 2 vCPUs ${two[-1]} s" >&2
    done
    local a b
    a=$(printf '%s\n' "${one[@]}" | median)
    b=$(printf '%s\n' "${two[@]}" | median)
    awk -v a="$a" -v b="$b" 'BEGIN { printf "two busy shells on 1 vCPU %.2f s, on 2 vCPUs %.2f s, ratio %.2f\n", a, b, b / a }'
}

# The work is given as a file in the initramfs' place of a second archive, since it would not fit the command line's quotes.
busy_time() {
    local folder
    folder=$(mktemp -d)
    mkdir "$folder/root"
    printf '%s\n' "$2" >"$folder/root/busy"
    (cd "$folder" && printf 'root\nroot/busy\n' | "$busybox" cpio -o -H newc 2>/dev/null | gzip -n) >"$folder/busy.cpio.gz"
    cat "$guest/initramfs.cpio.gz" "$folder/busy.cpio.gz" >"$folder/initramfs"
    "$reprise" run --hypervisor soft --cpus "$1" --memory 512M --kernel "$guest/vmlinux" \
        --initramfs "$folder/initramfs" \
        --cmdline 'console=ttyS0 quiet reprise.quiet reprise.run="sh /root/busy; poweroff -f"' </dev/null 2>/dev/null |
        tr -d '\r' | awk '/^busy / { printf "%.2f\n", $3 - $2 }'
    rm -rf "$folder"
}

find_busybox() {
    busybox=$(command -v busybox || true)
    if [ -z "$busybox" ]; then
        tools=$(mktemp -d)
        trap 'rm -rf "$tools"' EXIT
        dpkg-deb -x "$(find "$guest/packages" -name 'busybox-static_*.deb' | head -n 1)" "$tools"
        busybox=$tools/bin/busybox
    fi
}

case "${1:-all}" in
boot) bench_boot ;;
smp) find_busybox; bench_smp ;;
all) bench_boot; find_busybox; bench_smp ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
