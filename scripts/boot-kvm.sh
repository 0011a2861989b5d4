#!/bin/bash
# Boots Debian's stock kernel on this host's KVM to the initramfs' first line, and prints how long that took and how many
# instructions were rescued, by mnemonic. Meant for a KVM in software, which gives up many instructions and needs many
# minutes; elsewhere there is hardly anything to rescue.
#
# usage: scripts/boot-kvm.sh
#
# It needs a core of its own: the guest's kernel runs at about a million instructions a second on a KVM in software, and one
# whose clock ticks faster than it can serve the tick stands still.
#
# PATIENCE=SECONDS is how long it waits for the line (7200), EVERY=SECONDS how often it tells how far it is (60).
set -euo pipefail

cd "$(dirname "$0")/.."
reprise=${CARGO_TARGET_DIR:-target}/release/reprise
first_line="reprise: init reached"
patience=${PATIENCE:-7200}
every=${EVERY:-60}

fail() { echo "boot-kvm: $*" >&2; exit 1; }

[ -r /dev/kvm ] && [ -w /dev/kvm ] || fail "/dev/kvm is not there, or may not be opened"
command -v curl >/dev/null || fail "please install curl"
cargo build --release --locked --quiet --package reprise-vmm --bin reprise
scripts/guest.sh >/dev/null
guest=target/guest
folder=$(mktemp -d)
trap 'kill "${pid:-0}" 2>/dev/null || true; rm -rf "$folder"' EXIT

start=$EPOCHSECONDS
"$reprise" run --hypervisor kvm --cpus 1 --memory 512M --serial file="$folder/console" --api-socket "$folder/api" \
    --kernel "$guest/vmlinux" --initramfs "$guest/initramfs.cpio.gz" --cmdline "console=ttyS0 reprise.quiet cryptomgr.notests nowatchdog rcupdate.rcu_cpu_stall_suppress=1 mitigations=off" \
    </dev/null >"$folder/log" 2>&1 &
pid=$!

# The vCPU's figures, one a line.
figures() {
    curl --silent --unix-socket "$folder/api" http://localhost/api/v1/vm.counters |
        grep -o '"vcpu0":{[^}]*}' | grep -o '"[a-z0-9_]*":[0-9]*' | tr -d '"' | tr ':' ' '
}

told=$EPOCHSECONDS
until grep -q "$first_line" "$folder/console" 2>/dev/null; do
    kill -0 "$pid" 2>/dev/null || { cat "$folder/log" >&2; fail "the guest has ended"; }
    ((EPOCHSECONDS - start < patience)) || { tail -n 5 "$folder/console" >&2; fail "no line after $patience s"; }
    if ((EPOCHSECONDS - told >= every)); then
        told=$EPOCHSECONDS
        echo "$((told - start)) s: $(figures | awk '$1 == "rescues" { print $2 " rescues" }'); $(tail -n 1 "$folder/console")"
    fi
    sleep 1
done
echo "init after $((EPOCHSECONDS - start)) s"
figures | awk '/^rescue/ { printf "%-28s %12d\n", $1, $2 }'
