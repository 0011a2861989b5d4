#!/bin/sh
# Runs every check and test: formatting, clippy with warnings denied, unit, documentation and whole-guest tests.
#
# Whole-guest tests need target/guest, which is made if it can be; the processor's tests compare with QEMU if it is there; tests of
# machines run on KVM too if it is there; network cards need a tap, and who may make one. REPRISE_REQUIRE=guest,qemu,kvm,tap makes
# the absence of any of these a failure instead of a message.
set -eu

cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; "$@"; }

required() { case ",${REPRISE_REQUIRE:-}," in *,"$1",*) true ;; *) false ;; esac; }

# What KVM lacks, if anything, the tests themselves say; here only whether there is one.
if [ -r /dev/kvm ] && [ -w /dev/kvm ]; then
    backends="soft and kvm"
elif required kvm; then
    echo "test.sh: REPRISE_REQUIRE has kvm, and /dev/kvm cannot be opened" >&2
    exit 1
else
    backends="soft only: /dev/kvm cannot be opened"
fi
echo "backends: $backends"

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
step cargo clippy --package reprise-vmm --no-default-features --all-targets --locked -- -D warnings
step env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Tests that find no guest say so.
step scripts/guest.sh || ! required guest

step cargo test --workspace --all-targets --locked
step cargo test --workspace --doc --locked
step cargo run --quiet --package reprise-vmm --example embed --no-default-features --locked -- \
    target/guest/vmlinux target/guest/initramfs.cpio.gz
step cargo run --quiet --package reprise-vmm --example guest_test --no-default-features --locked -- \
    target/guest/vmlinux target/guest/initramfs.cpio.gz

printf '\nbackends: %s\n' "$backends"
