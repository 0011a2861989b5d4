#!/bin/sh
# Runs every check and test: formatting, clippy with warnings denied, unit, documentation and whole-guest tests.
#
# Whole-guest tests need target/guest, which is made if it can be; the processor's tests compare with QEMU if it is there.
# REPRISE_REQUIRE=guest,qemu makes the absence of the one, or the other, a failure instead of a message.
set -eu

cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; "$@"; }

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
step cargo clippy --package reprise-vmm --no-default-features --all-targets --locked -- -D warnings
step env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Tests that find no guest say so.
step scripts/guest.sh || case ",${REPRISE_REQUIRE:-}," in *,guest,*) false ;; esac

step cargo test --workspace --all-targets --locked
step cargo test --workspace --doc --locked
step cargo run --quiet --package reprise-vmm --example embed --no-default-features --locked -- \
    target/guest/vmlinux target/guest/initramfs.cpio.gz
