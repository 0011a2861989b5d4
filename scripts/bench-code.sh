#!/bin/bash
# Measures how fast programs run that only compute (bench-code.c: a loop in assembly language, and what a compiler makes of sorting,
# hashing, packing, SHA-256, a product of matrices, a bytecode interpreter and a tree), in Reprise's soft CPU, translating
# (translate=on) and interpreting, and in QEMU's TCG, side by side, and prints the ratios to QEMU.
#
# usage: scripts/bench-code.sh [loop|sort|hash|lz|sha256|matrix|bytecode|tree…]
#
# All boot the same vmlinux and initramfs with 1 vCPU and 512 MiB, in turn, RUNS times each (3), and the medians are compared. A
# time is that of the processor, of all threads of a machine, between two lines of the guest's console, so that a busy host blurs it
# little; CLOCK=wall takes the host's clock. QEMU is Debian's qemu-system-x86, machine microvm (see bench-boot.sh); QEMU=FILE takes
# another one. MACHINES names some of "translated reprise qemu", and SKIP_BUILD=1 takes the binary that is there. Needs a C compiler.
set -euo pipefail

cd "$(dirname "$0")/.."
runs=${RUNS:-3}
clock=${CLOCK:-cpu}
qemu=${QEMU:-qemu-system-x86_64}
reprise=${CARGO_TARGET_DIR:-target}/release/reprise
machines=${MACHINES:-translated reprise qemu}
guest=target/guest

fail() { echo "bench-code: $*" >&2; exit 1; }

for job in "$@"; do
    case $job in
    loop | sort | hash | lz | sha256 | matrix | bytecode | tree) ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
command -v cc >/dev/null || fail "please install gcc and libc6-dev"
if ! command -v "$qemu" >/dev/null; then
    [ "$(id -u)" = 0 ] || fail "please install qemu-system-x86"
    apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends qemu-system-x86 seabios >&2
fi
[ -n "${SKIP_BUILD:-}" ] || cargo build --release --locked --quiet --package reprise-vmm --bin reprise
scripts/guest.sh >/dev/null

work=$(mktemp -d)
machine_pid=''
cleanup() {
    [ -z "$machine_pid" ] || kill "$machine_pid" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# An initramfs with the program behind the usual one.
busybox=$(command -v busybox || true)
if [ -z "$busybox" ]; then
    dpkg-deb -x "$(find "$guest/packages" -name 'busybox-static_*.deb' | head -n 1)" "$work/tools"
    busybox=$(find "$work/tools" -path '*bin/busybox' -type f | head -n 1)
fi
mkdir -p "$work/root"
cc -static -O2 -Wall -o "$work/root/bench-code" scripts/bench-code.c
cat >"$work/root/code" <<GUEST
/root/bench-code $*
echo "all done"
poweroff -f
GUEST
(cd "$work" && printf 'root\nroot/bench-code\nroot/code\n' | "$busybox" cpio -o -H newc 2>/dev/null | gzip -n) >"$work/code.cpio.gz"
cat "$guest/initramfs.cpio.gz" "$work/code.cpio.gz" >"$work/initramfs"
cmdline='console=ttyS0 quiet reprise.quiet reprise.run="sh /root/code"'

# Seconds on the chosen clock, for the machine with process $1, into `now`.
read_clock() {
    if [ "$clock" = wall ]; then
        now=$EPOCHREALTIME
        return
    fi
    local task ran sum=0
    for task in /proc/"$1"/task/*/schedstat; do
        read -r ran _ 2>/dev/null <"$task" && sum=$((sum + ran))
    done
    printf -v now '%d.%09d' $((sum / 1000000000)) $((sum % 1000000000))
}

# Becomes machine $1.
start() {
    local cpus=1
    case $1 in
    qemu)
        exec "$qemu" -machine microvm,acpi=off -accel tcg -cpu max -smp 1 -m 512 -kernel "$guest/vmlinux" -initrd "$work/initramfs" \
            -append "$cmdline" -nodefaults -no-user-config -no-reboot -display none -serial stdio
        ;;
    translated) cpus=1,model=v3,translate=on ;;
    reprise) cpus=1,model=v3,translate=off ;;
    esac
    exec "$reprise" run --hypervisor soft --cpus $cpus --memory 512M --serial tty --kernel "$guest/vmlinux" \
        --initramfs "$work/initramfs" --cmdline "$cmdline"
}

# Runs machine $1; prints "NAME SECONDS INSTRUCTIONS CHECKSUM" for each program.
measure() {
    local line now began instructions word name rest
    coproc machine { start "$1" </dev/null 2>"$work/log"; }
    machine_pid=$machine_PID
    local out=${machine[0]}
    while IFS= read -r -t 600 line <&"$out"; do
        read -r word name rest <<<"${line%$'\r'}"
        case $word in
        begin) read_clock "$machine_pid"; began=$now instructions=$rest ;;
        end) read_clock "$machine_pid"; echo "$name $(awk -v a="$began" -v b="$now" 'BEGIN { printf "%.4f", b - a }') $instructions $rest" ;;
        all) break ;;
        *panic* | bench-code:*) echo "bench-code: $1: $line" >&2 ;;
        esac
    done
    kill "$machine_pid" 2>/dev/null || true
    wait "$machine_pid" 2>/dev/null || true
    machine_pid=''
    [ "${word:-}" = all ] || fail "$1 did not finish: $(tail -n 3 "$work/log")"
}

for ((run = 1; run <= runs; run++)); do
    for machine in $machines; do
        measure "$machine" | sed "s/^/$machine /" >>"$work/all"
        echo "run $run: $machine" >&2
    done
done
awk '
    function median(key,    n, i, j, list, t) {
        n = split(values[key], list, " ")
        for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++) if (list[j] + 0 < list[i] + 0) { t = list[i]; list[i] = list[j]; list[j] = t }
        return list[int((n + 1) / 2)]
    }
    function of(m, i) { return m " " name[i] }
    # Seconds, and how many times as fast as QEMU.
    function cell(m, i,    text) {
        if (!(of(m, i) in values)) return sprintf("%18s", "")
        text = sprintf("%.3f", median(of(m, i)))
        if (m != "qemu" && of("qemu", i) in values) text = text sprintf(" (%5.2f)", median(of("qemu", i)) / median(of(m, i)))
        return sprintf("%18s", text)
    }
    # The geometric mean over the compiled programs.
    function mean(m,    i, sum, n) {
        for (i = 1; i <= count; i++) if (name[i] != "loop" && of(m, i) in values && of("qemu", i) in values) {
            sum += log(median(of("qemu", i)) / median(of(m, i))); n++
        }
        return n ? sprintf("%18s", sprintf("(%5.2f)", exp(sum / n))) : sprintf("%18s", "")
    }
    {
        if (!($2 in seen)) { seen[$2] = 1; name[++count] = $2; sums[$2] = $5; instructions[$2] = $4 }
        if (sums[$2] != $5) { print "bench-code: " $1 " computes something else in " $2 > "/dev/stderr"; wrong = 1 }
        values[$1 " " $2] = values[$1 " " $2] " " $3
    }
    END {
        printf "%-10s%18s%18s%18s   seconds (times as fast as QEMU)\n", "", "qemu-tcg", "translated", "interpreted"
        for (i = 1; i <= count; i++) {
            printf "%-10s%s%s%s", name[i], cell("qemu", i), cell("translated", i), cell("reprise", i)
            if (instructions[name[i]] > 0 && of("translated", i) in values)
                printf "   %.0f MIPS translated", instructions[name[i]] / 1e6 / median(of("translated", i))
            print ""
        }
        printf "%-10s%18s%s%s   geometric mean of what was compiled\n", "", "", mean("translated"), mean("reprise")
        exit wrong
    }' "$work/all"
