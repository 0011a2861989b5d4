//! A disk in a qcow2 image, and a disk and a share that other processes serve, with the guest's own drivers.
//!
//! Needs `qemu-img`, `qemu-storage-daemon` and `virtiofsd`; whatever is not there is left out, and said to be.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::guest::Guest;
use crate::serve::Serve;
use crate::wait::{eventually, output};

/// What the host leaves on the disk that another process serves; and where it does, and where the guest does, in sectors.
const FROM_HOST: &[u8] = b"from the host\n";
const HOST_SECTOR: u64 = 8;
const GUEST_SECTOR: u64 = 128;
/// The numbers up to this one are what the guest writes, a line each.
const NUMBERS: u32 = 50_000;

/// A program that is installed.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian has `virtiofsd` in one of these.
    let others = ["/usr/libexec", "/usr/lib/qemu"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(others)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        eprintln!("skipped: there is no {name}");
    }
    found
}

/// Another process that serves a socket, killed at the end.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, socket: &Path) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut server = Self(child.unwrap());
        eventually("a socket of another process", || {
            let ended = server.0.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} ended: {ended:?}");
            socket.exists().then_some(())
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_guest_uses_a_qcow2_disk_and_a_disk_and_a_share_of_other_processes() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let folder = serve.folder.path();
    let file = |name: &str| folder.join(name);

    let mut disks = Vec::new();
    let image = program("qemu-img").map(|qemu_img| {
        let image = file("disk.qcow2");
        let made = output(
            Command::new(&qemu_img)
                .args(["create", "-q", "-f", "qcow2"])
                .arg(&image)
                .arg("64M"),
        );
        assert!(made.status.success(), "{made:?}");
        disks.push(json!({"path": image, "image_type": "Qcow2", "serial": "qcow2"}));
        (qemu_img, image)
    });
    let storage = program("qemu-storage-daemon").map(|daemon| {
        let (raw, socket) = (file("raw"), file("blk.sock"));
        let disk = std::fs::File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&raw)
            .unwrap();
        disk.set_len(16 << 20).unwrap();
        disk.write_all_at(FROM_HOST, 512 * HOST_SECTOR).unwrap();
        let server = Server::start(
            Command::new(daemon)
                .arg(format!(
                    "--blockdev=driver=file,node-name=raw,filename={}",
                    raw.display()
                ))
                .arg(format!(
                    "--export=type=vhost-user-blk,id=raw,node-name=raw,writable=on,addr.type=unix,addr.path={}",
                    socket.display()
                )),
            &socket,
        );
        disks.push(json!({"vhost_user": true, "vhost_socket": socket}));
        (server, disk)
    });
    let share = program("virtiofsd").map(|daemon| {
        let (share, socket) = (file("share"), file("fs.sock"));
        std::fs::create_dir(&share).unwrap();
        std::fs::write(share.join("from-host"), FROM_HOST).unwrap();
        let server = Server::start(
            Command::new(daemon)
                .arg(format!("--socket-path={}", socket.display()))
                .args(["-o", &format!("source={}", share.display())])
                .args(["-o", "sandbox=chroot", "-o", "cache=none"]),
            &socket,
        );
        (server, share, socket)
    });

    let mut config = json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 512 << 20, "shared": true},
        "payload": {"kernel": guest.kernel, "initramfs": guest.initramfs, "cmdline": "console=ttyS0"},
        "serial": {"mode": "Socket", "socket": serve.console()},
        "disks": disks,
    });
    if let Some((_, _, socket)) = &share {
        config["fs"] = json!([{"tag": "share", "socket": socket}]);
    }
    let mut console = serve.boot_config(&config);
    console.wait_for_shell();
    // The kernel's own lines would stand among the commands'.
    console.run("dmesg -n 1");

    if image.is_some() {
        let own = console.run("md5sum < /bin/busybox");
        assert_eq!(console.run("cat /sys/block/vda/serial").trim(), "qcow2");
        console.run("mke2fs -q /dev/vda && mount -t ext4 /dev/vda /mnt && cp /bin/busybox /mnt/busybox && umount /mnt");
        // What was given back to the host reads as zeros, and what was written stays.
        console.run(
            "mount -t ext4 -o discard /dev/vda /mnt && cp /mnt/busybox /mnt/other && rm /mnt/other && umount /mnt",
        );
        console.run("mount -t ext4 /dev/vda /mnt");
        assert_eq!(console.run("/mnt/busybox md5sum < /mnt/busybox"), own);
        console.run("umount /mnt");
    }
    if storage.is_some() {
        let disk = if image.is_some() { "/dev/vdb" } else { "/dev/vda" };
        let line = console.run(&format!(
            "dd if={disk} bs=512 skip={HOST_SECTOR} count=1 2>/dev/null | head -n 1"
        ));
        assert_eq!(line.trim().as_bytes(), FROM_HOST.trim_ascii());
        console.run(&format!("seq 1 {NUMBERS} > /tmp/numbers"));
        console.run(&format!(
            "dd if=/tmp/numbers of={disk} bs=512 seek={GUEST_SECTOR} conv=fsync 2>/dev/null"
        ));
    }
    if let Some((_, share, _)) = &share {
        console.run("mount -t virtiofs share /mnt");
        assert_eq!(
            console.run("cat /mnt/from-host").trim().as_bytes(),
            FROM_HOST.trim_ascii()
        );
        console.run(&format!("seq 1 {NUMBERS} > /mnt/from-guest && sync"));
        std::fs::write(share.join("later"), "later").unwrap();
        assert_eq!(console.run("cat /mnt/later").trim(), "later");
        console.run("umount /mnt");
    }
    let errors = console.run("dmesg | grep -c -e 'I/O error' -e 'EXT4-fs error'");
    assert_eq!(errors.trim(), "0");
    serve.put("vm.shutdown");

    // What the guest wrote, as the host finds it.
    let numbers: String = (1..=NUMBERS).map(|number| format!("{number}\n")).collect();
    if let Some((_server, disk)) = &storage {
        let mut found = vec![0; numbers.len()];
        disk.read_exact_at(&mut found, 512 * GUEST_SECTOR).unwrap();
        assert!(found == numbers.as_bytes(), "what the guest wrote is not in the image");
    }
    if let Some((_, share, _)) = &share {
        assert!(std::fs::read(share.join("from-guest")).unwrap() == numbers.as_bytes());
    }
    if let Some((qemu_img, image)) = image {
        let checked = output(Command::new(qemu_img).args(["check", "-q", "-f", "qcow2"]).arg(image));
        assert!(checked.status.success(), "{checked:?}");
    }
}
