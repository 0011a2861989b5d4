#!/bin/bash
# Measures how long Debian's kernel takes to the initramfs' first line in QEMU's TCG and in Reprise's soft CPU, whose hot code is
# translated or all of which is interpreted (translate=off); and how much faster two busy shells are on two vCPUs than on one.
#
# usage: scripts/bench-boot.sh [boot|smp]
#
# All boot the same vmlinux and initramfs with 1 vCPU and 512 MiB, in turn, RUNS times each (5), and the medians are compared: of the
# host's clock, and of the processor time of all threads of a machine, which a busy host blurs less. QEMU is Debian's qemu-system-x86,
# machine microvm; without ACPI, for with it QEMU's microvm has no timer that this kernel calibrates its clocks with under TCG.
# QEMU=FILE takes another one, and SKIP_BUILD=1 the binary of Reprise that is there.
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
[ -n "${SKIP_BUILD:-}" ] || cargo build --release --locked --quiet --package reprise-vmm --bin reprise
scripts/guest.sh >/dev/null
guest=target/guest

ticks=$(getconf CLK_TCK)

# Runs the command $2… and prints how many seconds pass until its output has line $1, and how many of its processors' time; then
# ends it.
seconds_to_line() {
    local line=$1 start=$EPOCHREALTIME end='' text used
    shift
    coproc machine { exec "$@" </dev/null 2>/dev/null; }
    local pid=$machine_PID
    while IFS= read -r -t 120 text <&"${machine[0]}"; do
        if [[ $text == *"$line"* ]]; then
            end=$EPOCHREALTIME
            # utime and stime, behind a name that may have blanks.
            used=$(sed 's/.*) //' "/proc/$pid/stat" | cut -d' ' -f12,13)
            break
        fi
    done
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    [ -n "$end" ] || fail "no line \"$line\" from: $*"
    awk -v start="$start" -v end="$end" -v used="$used" -v ticks="$ticks" \
        'BEGIN { split(used, of); printf "%.3f %.3f\n", end - start, (of[1] + of[2]) / ticks }'
}

# Of column $1.
median() { awk -v column="$1" '{ print $column }' | sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

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
    local qemus=() translated=() interpreted=() run
    for ((run = 1; run <= runs; run++)); do
        qemus+=("$(in_qemu "$first_line" 1 "$cmdline")")
        translated+=("$(in_reprise "$first_line" 1,translate=on "$cmdline")")
        interpreted+=("$(in_reprise "$first_line" 1,translate=off "$cmdline")")
        echo "run $run: qemu-tcg ${qemus[-1]}, translated ${translated[-1]}, interpreted ${interpreted[-1]}" >&2
    done
    local column a b c
    for column in 1 2; do
        a=$(printf '%s\n' "${qemus[@]}" | median $column)
        b=$(printf '%s\n' "${translated[@]}" | median $column)
        c=$(printf '%s\n' "${interpreted[@]}" | median $column)
        awk -v column=$column -v a="$a" -v b="$b" -v c="$c" 'BEGIN {
            printf "boot, %s: qemu-tcg %.2f s, translated %.2f s (%.2f times as long), interpreted %.2f s (%.2f)\n",
                column == 1 ? "clock" : "processor", a, b, b / a, c, c / a }'
    done
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
    a=$(printf '%s\n' "${one[@]}" | median 1)
    b=$(printf '%s\n' "${two[@]}" | median 1)
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
