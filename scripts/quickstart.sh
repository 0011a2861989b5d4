#!/bin/sh
# From a fresh Debian machine to a shell in a microVM that was launched over REST.
#
# usage: scripts/quickstart.sh [--check]
#
# Installs what is missing (with sudo where not root), builds, makes a guest, starts `reprise serve`, creates and boots a
# microVM with curl, and hands over its serial console. Ctrl-A x, or `poweroff` in the guest, ends it.
#
#   --check         runs unattended: waits for the shell, runs a few commands, powers off, shows what was printed, and
#                   exits 0 only if all of it was right
#   KERNEL=FILE INITRAMFS=FILE
#                   another guest; see scripts/guest.sh. --check expects a busybox-like shell with the prompt "guest# "
#   VCPUS=N MEMORY_MIB=N HYPERVISOR=auto|kvm|soft
#                   another machine than 2 vCPUs, 512 MiB, auto
set -eu

cd "$(dirname "$0")/.."
vcpus=${VCPUS:-2}
memory_mib=${MEMORY_MIB:-512}
check=
case "${1:-}" in
"") ;;
--check) check=yes ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

say() { echo "quickstart: $*" >&2; }
fail() { say "$*"; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install_missing() {
    missing=
    command -v cc >/dev/null || missing="$missing gcc libc6-dev"
    command -v curl >/dev/null || missing="$missing curl"
    command -v lz4 >/dev/null || missing="$missing lz4"
    if [ -n "$missing" ]; then
        command -v apt-get >/dev/null || fail "please install:$missing"
        say "installing$missing"
        as_root apt-get update -q
        # shellcheck disable=SC2086
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
    fi
    if ! command -v cargo >/dev/null; then
        # Debian 13 and later have rustup; it brings the toolchain.
        if command -v apt-get >/dev/null && apt-cache show rustup >/dev/null 2>&1; then
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y rustup
            rustup default stable
        else
            fail "please install Rust 1.95 or newer: https://rustup.rs"
        fi
    fi
}

# One REST call: method, name, and the body if there is one. Prints the answer's body.
call() {
    method=$1 name=$2
    shift 2
    if ! curl -sS --fail-with-body --unix-socket "$run/api" -X "$method" "http://localhost/api/v1/$name" "$@"; then
        echo >&2
        return 1
    fi
}

create_and_boot() {
    tries=0
    until [ -S "$run/api" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 200 ] || fail "reprise serve does not answer"
        sleep 0.05
    done
    call PUT vm.create -d "{
        \"cpus\": {\"boot_vcpus\": $vcpus, \"max_vcpus\": $vcpus},
        \"memory\": {\"size\": $((memory_mib * 1024 * 1024))},
        \"payload\": {\"kernel\": \"$kernel\", \"initramfs\": \"$initramfs\", \"cmdline\": \"console=ttyS0\"},
        \"serial\": {\"mode\": \"Tty\"}}" && call PUT vm.boot
}

state() { call GET vm.info 2>/dev/null | sed -n 's/.*"state": *"\([A-Za-z]*\)".*/\1/p'; }

# Launches the machine, and ends the VMM when the machine has ended.
conduct() {
    if create_and_boot; then
        while [ "$(state)" != Shutdown ] && [ -S "$run/api" ]; do sleep 0.3; done
    fi
    if [ -S "$run/api" ]; then call PUT vmm.shutdown || true; fi
}

# Waits until what the guest has printed since byte $from has a line (or an end) that matches $1.
await() {
    deadline=$(($(date +%s) + 300))
    until tail -c +"$from" "$run/console" | tr -d '\r' | grep -q -e "$1"; do
        kill -0 "$server" 2>/dev/null || fail "the VMM ended while the guest was to say: $1"
        [ "$(date +%s)" -lt "$deadline" ] || fail "the guest did not say within 5 minutes: $1"
        sleep 0.1
    done
}

# Types the command $1 into the guest's shell; its output is then in $output.
type_command() {
    from=$(($(wc -c <"$run/console") + 1))
    echo "$1" >&3
    await "^guest# "
    output=$(tail -c +"$from" "$run/console" | tr -d '\r')
}

expect() {
    if ! echo "$output" | grep -q -e "$1"; then
        wrong="$wrong
    $2"
    fi
}

check_guest() {
    mkfifo "$run/keyboard"
    : >"$run/console"
    "$reprise" serve --hypervisor "${HYPERVISOR:-auto}" --api-socket "$run/api" <"$run/keyboard" >"$run/console" &
    server=$!
    exec 3>"$run/keyboard"
    create_and_boot || fail "the microVM cannot be booted"
    from=1
    await "^guest# "
    wrong=
    type_command "uname -a"
    expect "^Linux .*x86_64" "uname -a names no Linux on x86_64"
    type_command nproc
    expect "^$vcpus\$" "nproc is not $vcpus"
    type_command "free -m"
    total=$(echo "$output" | sed -n 's/^Mem: *\([0-9]*\).*/\1/p')
    [ "${total:-0}" -gt $((memory_mib * 3 / 4)) ] && [ "${total:-0}" -le "$memory_mib" ] || wrong="$wrong
    free -m finds ${total:-no} MiB of $memory_mib"
    type_command "cat /proc/cpuinfo"
    [ "$(echo "$output" | grep -c '^processor')" = "$vcpus" ] || wrong="$wrong
    /proc/cpuinfo has not $vcpus processors"
    echo poweroff >&3
    tries=0
    while [ "$(state)" != Shutdown ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 200 ] || fail "the guest does not power off"
        sleep 0.3
    done
    call PUT vmm.shutdown
    wait "$server" || wrong="$wrong
    reprise serve ended with status $?"
    tr -d '\r' <"$run/console"
    [ -z "$wrong" ] || fail "the check failed:$wrong"
    say "all of it was right"
}

install_missing
say "building"
cargo build --release --locked --quiet --package reprise-vmm --bin reprise
reprise=${CARGO_TARGET_DIR:-target}/release/reprise
say "making the guest"
scripts/guest.sh >&2
guest=$PWD/target/guest
kernel=$guest/vmlinux
# A kernel that only unpacks itself.
[ -e "$kernel" ] || kernel=$guest/vmlinuz
initramfs=$guest/initramfs.cpio.gz

run=$(mktemp -d)
server=
cleanup() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi
    rm -rf "$run"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

if [ -n "$check" ]; then
    check_guest
else
    say "booting; Ctrl-A x leaves"
    conduct &
    "$reprise" serve --hypervisor "${HYPERVISOR:-auto}" --api-socket "$run/api"
    wait
fi
