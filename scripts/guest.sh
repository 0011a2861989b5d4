#!/bin/sh
# Makes a guest to run: Debian's cloud kernel and an initramfs with busybox and the kernel's virtio modules.
#
# usage: scripts/guest.sh
#
# Writes target/guest/vmlinuz (as Debian ships it), target/guest/vmlinux (its payload, an ELF image) and
# target/guest/initramfs.cpio.gz, and prints the three paths. Needs no root: packages are downloaded and unpacked, not
# installed. What was made is kept until this script changes; remove target/guest to make it anew.
#
#   KERNEL=FILE     another kernel (vmlinuz or vmlinux) in place of Debian's
#   INITRAMFS=FILE  another initramfs in place of ours
#   BUSYBOX=FILE    another statically linked busybox in place of Debian's
#   GUEST_DIR=DIR   another place than target/guest
#
# The initramfs understands these words on the kernel's command line:
#   reprise.run="COMMANDS"  shell commands to run before the console's shell starts
#   reprise.test="COMMANDS" the same, then `reprise: status N` with their exit status, and the machine powers off
#   reprise.quiet           no shell on the console: only what reprise.run says
set -eu

repository=$(cd "$(dirname "$0")/.." && pwd)
guest=${GUEST_DIR:-$repository/target/guest}
packages=$guest/packages
kernel_package=linux-image-cloud-amd64

say() { echo "guest.sh: $*" >&2; }
fail() { say "$*"; exit 1; }

# Downloads the package $1 into $packages unless it is there; prints the file's path.
download() {
    found=$(find "$packages" -name "$1_*.deb" | sort | tail -n 1)
    if [ -z "$found" ]; then
        command -v apt-get >/dev/null || fail "there is no apt-get to download $1 with; set KERNEL, INITRAMFS or BUSYBOX"
        say "downloading $1"
        # The sandbox user cannot read every place that a repository may lie in.
        (cd "$packages" && apt-get -q -o APT::Sandbox::User=root $apt_options download "$1" >&2) || return 1
        found=$(find "$packages" -name "$1_*.deb" | sort | tail -n 1)
    fi
    echo "$found"
}

# The package of the kernel that $kernel_package currently depends on.
kernel_image_package() {
    # shellcheck disable=SC2086
    apt-cache $apt_options depends "$kernel_package" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1
}

# Lists of packages of our own, for a machine whose lists are empty or stale and not ours to refresh.
refresh_package_lists() {
    say "fetching package lists"
    mkdir -p "$packages/lists/partial"
    apt_options="-o Dir::State::Lists=$packages/lists -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache="
    # shellcheck disable=SC2086
    apt-get -q -o APT::Sandbox::User=root -o Debug::NoLocking=1 $apt_options update >&2
}

fetch_packages() {
    if [ -z "${KERNEL:-}" ] && [ -z "$(find "$packages" -name 'linux-image-*.deb')" ]; then
        image=$(kernel_image_package)
        [ -n "$image" ] || return 1
        download "$image" >/dev/null || return 1
    fi
    if [ -z "${INITRAMFS:-}" ] && [ -z "${BUSYBOX:-}" ]; then
        download busybox-static >/dev/null || return 1
    fi
}

# Reads the little-endian number of $3 bytes at offset $2 of file $1.
number() { od -A n -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }

# Unpacks the payload of the bzImage $1 into $2 (Documentation/arch/x86/boot.rst: setup_sects, payload_offset and
# payload_length). The VMM unpacks for itself; here the usual tools do it, so that the two can be compared.
unpack_kernel() {
    if [ "$(od -A n -t x1 -N 4 "$1" | tr -d ' ')" = 7f454c46 ]; then
        cp "$1" "$2"
        return
    fi
    [ "$(dd if="$1" bs=1 skip=514 count=4 2>/dev/null)" = HdrS ] || fail "$1 is neither an ELF image nor a bzImage"
    sectors=$(number "$1" 497 1)
    [ "$sectors" != 0 ] || sectors=4
    offset=$(((sectors + 1) * 512 + $(number "$1" 584 4)))
    length=$(number "$1" 588 4)
    payload=$2.payload
    tail -c +$((offset + 1)) "$1" | head -c "$length" >"$payload"
    # All but gzip are followed by the unpacked size in four bytes, which no stream format knows of.
    body=$((length - 4))
    case $(od -A n -t x1 -N 6 "$payload" | tr -d ' ') in
    1f8b*) gzip -dc <"$payload" >"$2" ;;
    fd377a585a00) need xz xz-utils && head -c "$body" "$payload" | xz -dc >"$2" ;;
    28b52ffd*) need zstd zstd && head -c "$body" "$payload" | zstd -dcq >"$2" ;;
    02214c18*) need lz4 lz4 && head -c "$body" "$payload" | $lz4 -dcq >"$2" ;;
    425a68*) need bzip2 bzip2 && head -c "$body" "$payload" | bzip2 -dc >"$2" ;;
    *) rm -f "$payload"; say "no tool for this kernel's payload: $2 is not made"; return ;;
    esac
    rm -f "$payload"
}

# Makes sure that tool $1 of package $2 is there, unpacked from the package if it is not installed.
need() {
    lz4=lz4
    command -v "$1" >/dev/null && return
    if [ "$(id -u)" = 0 ] && apt-get install -qq -y --no-install-recommends "$2" >/dev/null 2>&1; then return; fi
    tool=$(download "$2") || fail "$1 is needed to unpack the kernel: install the package $2"
    dpkg-deb -x "$tool" "$work/$2"
    PATH=$work/$2/usr/bin:$work/$2/bin:$PATH
    command -v "$1" >/dev/null || fail "$1 is needed to unpack the kernel: install the package $2"
}

# Copies the modules named on standard input, and all that they depend on, from the tree $1 to the root $2.
copy_modules() {
    tree=$1 root=$2
    version=$(ls "$tree/lib/modules")
    from=$tree/lib/modules/$version
    "$busybox" depmod -b "$tree" "$version"
    mkdir -p "$root/lib/modules/$version"
    while read -r name; do
        line=$(grep -E "(^|/)$name\.ko:" "$from/modules.dep") || continue
        for file in ${line%%:*} ${line#*:}; do
            mkdir -p "$root/lib/modules/$version/$(dirname "$file")"
            cp "$from/$file" "$root/lib/modules/$version/$file"
        done
    done
    cp "$from/modules.builtin" "$from/modules.order" "$root/lib/modules/$version/"
    "$busybox" depmod -b "$root" "$version"
}

modules='virtio_pci virtio_mmio virtio_blk virtio_net virtio-rng virtio_console virtio_balloon
vmw_vsock_virtio_transport virtiofs virtio_pmem ext4 button evdev'

# Compiles the program that speaks vsock, for which busybox has none, to $1; without a C compiler the guest goes without.
make_vsock() {
    command -v cc >/dev/null || { say "no cc: the guest gets no program \`vsock\`"; return 0; }
    cat >"$work/vsock.c" <<'VSOCK'
/* vsock echo PORT: sends one caller's bytes back. vsock call PORT TEXT: says TEXT to the host's port, and prints the answer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static char buffer[65536];

static void copy(int from, int to) {
    for (ssize_t had; (had = read(from, buffer, sizeof buffer)) > 0;)
        for (ssize_t at = 0, put; at < had; at += put)
            if ((put = write(to, buffer + at, had - at)) <= 0) { perror("write"); exit(1); }
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = (unsigned)strtoul(argv[2], 0, 0) };
    int own = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (own < 0) { perror("socket"); return 1; }
    if (strcmp(argv[1], "echo") == 0) {
        address.svm_cid = VMADDR_CID_ANY;
        if (bind(own, (void *)&address, sizeof address) || listen(own, 1)) { perror("listen"); return 1; }
        int caller = accept(own, 0, 0);
        if (caller < 0) { perror("accept"); return 1; }
        copy(caller, caller);
        return 0;
    }
    address.svm_cid = VMADDR_CID_HOST;
    if (connect(own, (void *)&address, sizeof address)) { perror("connect"); return 1; }
    const char *text = argc > 3 ? argv[3] : "";
    if (write(own, text, strlen(text)) < 0) { perror("write"); return 1; }
    shutdown(own, SHUT_WR);
    copy(own, 1);
    return 0;
}
VSOCK
    cc -static -Os -o "$1" "$work/vsock.c" 2>/dev/null || say "cc cannot link statically: the guest gets no program \`vsock\`"
}

make_initramfs() {
    root=$work/root
    mkdir -p "$root/bin" "$root/sbin" "$root/dev" "$root/proc" "$root/sys" "$root/tmp" "$root/run" "$root/root" \
        "$root/mnt" "$root/usr/bin" "$root/usr/sbin" "$root/etc/acpi/PWRF" \
        "$root/var/log" "$root/var/run"
    cp "$busybox" "$root/bin/busybox"
    chmod 755 "$root/bin/busybox"
    for applet in $("$busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    make_vsock "$root/bin/vsock"
    ln -s ../bin/busybox "$root/sbin/init"
    ln -s ../bin/busybox "$root/sbin/modprobe"
    if [ -d "$work/kernel/lib/modules" ]; then
        echo "$modules" | tr ' ' '\n' | copy_modules "$work/kernel" "$root"
    fi

    cat >"$root/init" <<'INIT'
#!/bin/sh
echo "reprise: init reached"
export PATH=/bin:/sbin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec /sbin/init
INIT
    cat >"$root/etc/inittab" <<'INITTAB'
::sysinit:/etc/rc
::respawn:/etc/shell
::ctrlaltdel:/bin/reboot
INITTAB
    cat >"$root/etc/rc" <<'RC'
#!/bin/sh
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
hostname guest
ip link set lo up
# Twice: devices on a bus appear when the bus has its driver.
for pass in 1 2; do
    for alias in $(find /sys/devices -name modalias -exec cat {} + | sort -u); do
        modprobe -q -b "$alias"
    done
done 2>/dev/null
modprobe -q evdev 2>/dev/null
# As a daemon it ends at once unless /var/log is there.
[ -e /dev/input/event0 ] && acpid
commands=$(sed -n 's/.*reprise\.run="\([^"]*\)".*/\1/p' /proc/cmdline)
[ -z "$commands" ] || sh -c "$commands"
tests=$(sed -n 's/.*reprise\.test="\([^"]*\)".*/\1/p' /proc/cmdline)
[ -n "$tests" ] || exit 0
sh -c "$tests"
echo "reprise: status $?"
poweroff -f
RC
    cat >"$root/etc/shell" <<'SHELL'
#!/bin/sh
cd /root
case " $(cat /proc/cmdline) " in *" reprise.quiet "*) exec sleep 1000000 ;; esac
echo "reprise: shell ready"
exec cttyhack sh -l
SHELL
    # What busybox's acpid calls the power button.
    cat >"$root/etc/acpi/PWRF/00000080" <<'POWER'
#!/bin/sh
echo "reprise: power button" >/dev/console
exec poweroff
POWER
    cat >"$root/etc/profile" <<'PROFILE'
export PATH=/bin:/sbin HOME=/root
export PS1='guest# '
PROFILE
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    chmod 755 "$root/init" "$root/etc/rc" "$root/etc/shell" "$root/etc/acpi/PWRF/00000080"
    # The same bytes for the same content: sorted, without dates and owners of this machine.
    find "$root" -exec touch -h -d @0 {} +
    (cd "$root" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0 --renumber-inodes --ignore-devno 2>/dev/null) | gzip -9n
}

main() {
    mkdir -p "$packages"
    apt_options=
    stamp="$(cksum <"$0") kernel=${KERNEL:-} initramfs=${INITRAMFS:-} busybox=${BUSYBOX:-}"
    if [ "$(cat "$guest/stamp" 2>/dev/null)" != "$stamp" ] || [ ! -e "$guest/initramfs.cpio.gz" ]; then
        for given in ${KERNEL:+"$KERNEL"} ${INITRAMFS:+"$INITRAMFS"} ${BUSYBOX:+"$BUSYBOX"}; do
            [ -f "$given" ] || fail "$given is not a file"
        done
        fetch_packages || { refresh_package_lists && fetch_packages; } ||
            fail "cannot download $kernel_package and busybox-static; set KERNEL and INITRAMFS to use your own"
        work=$(mktemp -d "$guest/work.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        trap 'exit 1' INT TERM
        if [ -n "${KERNEL:-}" ]; then
            cp "$KERNEL" "$work/vmlinuz"
        else
            dpkg-deb -x "$(find "$packages" -name 'linux-image-*.deb' | sort | tail -n 1)" "$work/kernel"
            cp "$work"/kernel/boot/vmlinuz-* "$work/vmlinuz"
            # Where newer Debian keeps it.
            [ -d "$work/kernel/lib/modules" ] || { [ ! -d "$work/kernel/usr/lib/modules" ] || ln -s usr/lib "$work/kernel/lib"; }
        fi
        unpack_kernel "$work/vmlinuz" "$work/vmlinux"
        if [ -n "${INITRAMFS:-}" ]; then
            cp "$INITRAMFS" "$work/initramfs.cpio.gz"
        else
            if [ -n "${BUSYBOX:-}" ]; then
                busybox=$BUSYBOX
            else
                dpkg-deb -x "$(download busybox-static)" "$work/busybox"
                busybox=$(find "$work/busybox" -path "*bin/busybox" -type f | head -n 1)
            fi
            make_initramfs >"$work/initramfs.cpio.gz"
        fi
        for made in vmlinuz vmlinux initramfs.cpio.gz; do
            rm -f "$guest/$made"
            [ ! -e "$work/$made" ] || mv "$work/$made" "$guest/$made"
        done
        echo "$stamp" >"$guest/stamp"
    fi
    for made in vmlinuz vmlinux initramfs.cpio.gz; do
        [ ! -e "$guest/$made" ] || echo "$guest/$made"
    done
}

main
