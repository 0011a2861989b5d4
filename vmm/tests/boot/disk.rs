//! A disk, with the guest's own driver.

use serde_json::json;

use crate::console::Console;
use crate::guest::Guest;
use crate::serve::Serve;

#[test]
fn a_guest_uses_a_disk_with_its_own_driver_across_a_snapshot() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let path = serve.folder.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let mut console = serve.boot_config(&json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 512 << 20},
        "payload": {"kernel": guest.kernel, "initramfs": guest.initramfs, "cmdline": "console=ttyS0"},
        "serial": {"mode": "Socket", "socket": serve.console()},
        "disks": [{"path": path, "serial": "reprise-0001", "num_queues": 2}],
    }));
    console.wait_for_shell();
    assert_eq!(console.run("cat /sys/block/vda/serial").trim(), "reprise-0001");
    assert_eq!(console.run("cat /sys/block/vda/size").trim(), "131072");
    assert!(
        console
            .run("cat /sys/class/misc/hw_random/rng_current")
            .contains("virtio")
    );
    assert_eq!(console.run("head -c 64 /dev/hwrng | wc -c").trim(), "64");
    assert!(console.run("grep virtio0-req /proc/interrupts").contains("PCI-MSI"));

    // A program is loaded from the disk, and not from what the guest remembers of it.
    console.run("mke2fs -q /dev/vda && mount -t ext4 /dev/vda /mnt && cp /bin/busybox /mnt/busybox && sync");
    console.run("umount /mnt && mount -t ext4 /dev/vda /mnt");
    let sum = console.run("md5sum < /bin/busybox");
    assert_eq!(console.run("/mnt/busybox md5sum < /mnt/busybox"), sum);

    serve.put("vm.pause");
    let snapshot = format!("file://{}", serve.folder.path().join("snapshot").display());
    serve.put_with("vm.snapshot", Some(&json!({"destination_url": snapshot})));
    let counters = serve.get("vm.counters");
    assert!(counters["disk0"]["read_ops"].as_u64().unwrap() > 0, "{counters}");
    assert_eq!(counters["disk0"]["malformed"], 0, "{counters}");
    assert!(counters["rng"]["bytes"].as_u64().unwrap() >= 64, "{counters}");

    let serve = serve.another();
    serve.put_with("vm.restore", Some(&json!({"source_url": snapshot, "resume": true})));
    let mut console = Console::connect(&serve.console());
    console.run("true");
    console.run("echo after > /mnt/note && sync && echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(console.run("/mnt/busybox md5sum < /mnt/busybox"), sum);
    assert_eq!(console.run("cat /mnt/note").trim(), "after");
    // The kernel tells the console of it.
    console.run("umount /mnt");
    let errors = console.run("dmesg | grep -c -e 'I/O error' -e 'EXT4-fs error'");
    assert_eq!(errors.trim(), "0");
    serve.put("vm.shutdown");
}
