#!/bin/bash
# Measures disk and network throughput in Reprise's soft CPU, interpreting and translating (translate=on), and in QEMU's TCG, side
# by side, and prints the ratios to QEMU.
#
# usage: scripts/bench-io.sh [disk|net]
#
# Both run the same vmlinux, initramfs, kernel command line and commands with 2 vCPUs and 512 MiB, in turn, RUNS times each (3), on
# the same raw image and the same tap, and the medians are compared. The image lies in IMAGES (/dev/shm, so that no disk of the host
# is measured); the guest reads and writes it past its own page cache. QEMU is Debian's qemu-system-x86, machine q35 with virtio-pci;
# QEMU=FILE takes another one, QEMU_DISK and QEMU_NET replace its options for the two devices. HYPERVISOR=kvm measures Reprise on
# KVM against nobody, MACHINES names some of "reprise translated qemu" to measure only those, and SKIP_BUILD=1 takes the binary that
# is there. Needs root for the tap, and a C compiler for what runs in the guest.
set -euo pipefail

cd "$(dirname "$0")/.."
runs=${RUNS:-3}
qemu=${QEMU:-qemu-system-x86_64}
hypervisor=${HYPERVISOR:-soft}
reprise=${CARGO_TARGET_DIR:-target}/release/reprise
guest=target/guest
mib=$((1 << 20))
disk_bytes=$((512 * mib))
random_reads=${RANDOM_READS:-20000}
net_bytes=$((${NET_MIB:-256} * mib))
tap=bench-io host_ip=198.18.90.1 guest_ip=198.18.90.2 port=5901

fail() { echo "bench-io: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "a tap takes root"
command -v cc >/dev/null || fail "please install gcc and libc6-dev"
if [ "$hypervisor" = soft ] && ! command -v "$qemu" >/dev/null; then
    apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends qemu-system-x86 seabios >&2
fi
[ -n "${SKIP_BUILD:-}" ] || cargo build --release --locked --quiet --package reprise-vmm --bin reprise
scripts/guest.sh >/dev/null

work=$(mktemp -d)
image=${IMAGES:-/dev/shm}/reprise-bench-io.img
peer='' machine_pid=''
cleanup() {
    [ -z "$peer" ] || kill "$peer" 2>/dev/null || true
    [ -z "$machine_pid" ] || kill "$machine_pid" 2>/dev/null || true
    ip link delete "$tap" 2>/dev/null || true
    rm -rf "$work" "$image"
}
trap cleanup EXIT

cc -static -O2 -Wall -o "$work/bench-io" scripts/bench-io.c
busybox=$(command -v busybox || true)
if [ -z "$busybox" ]; then
    dpkg-deb -x "$(find "$guest/packages" -name 'busybox-static_*.deb' | head -n 1)" "$work/tools"
    busybox=$(find "$work/tools" -path '*bin/busybox' -type f | head -n 1)
fi

# What the guest does: a line before and after each thing that is measured, told by the host's clock, and a wait for whoever is at
# the other end of the stream.
cat >"$work/disk" <<GUEST
b=/root/bench-io
\$b read /dev/vda $((64 * mib))
for job in "read /dev/vda $disk_bytes" "write /dev/vda $disk_bytes" "random /dev/vda $disk_bytes $random_reads"; do
    echo "begin \${job%% *}"; \$b \$job && echo "end \${job%% *}"
done
echo "all done"
poweroff -f
GUEST
cat >"$work/net" <<GUEST
b=/root/bench-io
ip addr add $guest_ip/30 dev eth0 && ip link set eth0 up
ping -c 1 -W 10 $host_ip >/dev/null
echo "begin send"; \$b send $host_ip $port $net_bytes && echo "end send"
echo "begin receive"; \$b receive $host_ip $((port + 1)) $net_bytes && echo "end receive"
echo "all done"
poweroff -f
GUEST

# An initramfs with the script $1 and the program behind the usual one.
initramfs_with() {
    mkdir -p "$work/$1.root/root"
    cp "$work/bench-io" "$work/$1" "$work/$1.root/root/"
    (cd "$work/$1.root" && printf 'root\nroot/bench-io\nroot/%s\n' "$1" | "$busybox" cpio -o -H newc 2>/dev/null | gzip -n) >"$work/$1.cpio.gz"
    cat "$guest/initramfs.cpio.gz" "$work/$1.cpio.gz" >"$work/$1.initramfs"
}

# Runs the machine $2 with the guest's script $1 and prints "NAME SECONDS" for each thing that it measured.
measure() {
    local what=$1 machine=$2 line name start
    coproc machine { exec "$work/$machine.sh" "$what" </dev/null 2>"$work/$machine.log"; }
    machine_pid=$machine_PID
    local out=${machine[0]}
    while IFS= read -r -t 600 line <&"$out"; do
        line=${line%$'\r'}
        case $line in
        "begin "*) start=$EPOCHREALTIME ;;
        "end "*)
            name=${line#end }
            awk -v name="$name" -v start="$start" -v end="$EPOCHREALTIME" 'BEGIN { printf "%s %.4f\n", name, end - start }'
            ;;
        "all done"*) break ;;
        *Kernel\ panic* | bench-io:* | *": No such"*) echo "bench-io: $machine: $line" >&2 ;;
        esac
    done
    kill "$machine_pid" 2>/dev/null || true
    wait "$machine_pid" 2>/dev/null || true
    machine_pid=''
    [ "${line:-}" = "all done" ] || fail "$machine did not finish $what: $(tail -n 3 "$work/$machine.log")"
}

# The machines as programs of their own, so that the one that is started is the one that is ended.
make_machines() {
    local common='what=$1; case $what in'
    local machine cpus
    for machine in reprise translated; do
        case $machine in translated) cpus=2,translate=on ;; *) cpus=2,translate=off ;; esac
        cat >"$work/$machine.sh" <<MACHINE
#!/bin/sh
$common
disk) set -- --disk path=$image,image_type=raw ;;
net) set -- --net tap=$tap ;;
esac
exec "$reprise" run --hypervisor $hypervisor --cpus $cpus --memory 512M --serial tty --kernel $guest/vmlinux \
    --initramfs $work/\$what.initramfs --cmdline 'console=ttyS0 quiet reprise.quiet reprise.run="sh /root/'\$what'"' "\$@"
MACHINE
        chmod +x "$work/$machine.sh"
    done
    cat >"$work/qemu.sh" <<MACHINE
#!/bin/sh
$common
disk) set -- ${QEMU_DISK:--drive file=$image,format=raw,if=none,id=d -device virtio-blk-pci,drive=d} ;;
net) set -- ${QEMU_NET:--netdev tap,id=n,ifname=$tap,script=no,downscript=no,vhost=off -device virtio-net-pci,netdev=n} ;;
esac
exec "$qemu" -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m 512 -nodefaults -no-user-config -no-reboot -display none \
    -serial stdio -kernel $guest/vmlinuz -initrd $work/\$what.initramfs \
    -append 'console=ttyS0 quiet reprise.quiet reprise.run="sh /root/'\$what'"' "\$@"
MACHINE
    chmod +x "$work/qemu.sh"
}

case $hypervisor in soft) machines=${MACHINES:-reprise translated qemu} ;; *) machines=reprise ;; esac

# Measures $1 with each machine in turn, RUNS times, and prints the medians in units of $2 ("NAME UNITS WORD" lines) a second.
compare() {
    local what=$1 units=$2 run machine
    for ((run = 1; run <= runs; run++)); do
        for machine in $machines; do
            if [ "$what" = net ]; then
                "$work/bench-io" sink $port >"$work/sent" &
                peer=$!
                "$work/bench-io" source $((port + 1)) $net_bytes >"$work/received" &
                local other=$!
            fi
            measure "$what" "$machine" >"$work/times"
            if [ "$what" = net ]; then
                # By the clock of the other end, from the first byte to the last.
                wait "$peer" "$other"
                peer=''
                { echo "send $(cut -d' ' -f2 "$work/sent")"; echo "receive $(cut -d' ' -f2 "$work/received")"; } >"$work/times"
            fi
            sed "s/^/$machine /" "$work/times" >>"$work/$what.all"
            echo "run $run: $machine: $(tr '\n' ' ' <"$work/times")(seconds)" >&2
        done
    done
    awk -v units="$units" '
        function median(key,    n, i, j, list, t) {
            n = split(values[key], list, " ")
            for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++) if (list[j] < list[i]) { t = list[i]; list[i] = list[j]; list[j] = t }
            return list[int((n + 1) / 2)]
        }
        # What machine `m` does of job `i` in a second; 0 if it was not measured.
        function rate(m, i,    key) { key = m " " name[i]; return key in values ? amount[i] / median(key) : 0 }
        BEGIN { n = split(units, unit, ";"); for (i = 1; i <= n; i++) { split(unit[i], u, " "); name[i] = u[1]; amount[i] = u[2]; word[i] = u[3] } }
        { values[$1 " " $2] = values[$1 " " $2] " " $3 }
        END {
            for (i = 1; i <= n; i++) {
                line = name[i] ":"
                theirs = rate("qemu", i)
                if (theirs) line = line sprintf(" qemu-tcg %.0f %s", theirs, word[i])
                for (j = 1; j <= 2; j++) {
                    ours = rate(j == 1 ? "reprise" : "translated", i)
                    if (ours) line = line sprintf(", %s %.0f %s", j == 1 ? "reprise" : "reprise translate=on", ours, word[i])
                    if (ours && theirs) line = line sprintf(" (ratio %.2f)", ours / theirs)
                }
                sub(/:,/, ":", line)
                print line
            }
        }' "$work/$what.all"
}

make_machines
case "${1:-all}" in
disk | net | all) ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
if [ "${1:-all}" != net ]; then
    initramfs_with disk
    head -c $disk_bytes /dev/urandom >"$image"
    compare disk "read 512 MiB/s;write 512 MiB/s;random $random_reads reads/s"
fi
if [ "${1:-all}" != disk ]; then
    initramfs_with net
    ip tuntap add dev "$tap" mode tap
    ip addr add $host_ip/30 dev "$tap"
    ip link set "$tap" up
    compare net "send $((net_bytes / mib)) MiB/s;receive $((net_bytes / mib)) MiB/s"
fi
