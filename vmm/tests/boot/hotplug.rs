//! Devices that come and go while the guest runs.

use serde_json::json;

use crate::console::Console;
use crate::guest::Guest;
use crate::net::{exchange, may_make_taps};
use crate::serve::Serve;
use crate::wait::eventually;

#[test]
fn a_guest_gets_a_disk_while_it_runs_and_gives_it_back_across_a_snapshot() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let image = serve.folder.path().join("disk");
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let mut console = serve.boot(&guest, &guest.kernel, 2);
    console.wait_for_shell();
    // What the kernel says of devices must not come between the letters of a command.
    console.run("dmesg -n 1");
    // Nobody in this guest loads drivers when devices come.
    console.run("modprobe virtio_blk");
    let add = json!({"path": image, "id": "data"});
    let (status, body) = serve.call("PUT", "vm.add-disk", Some(&add));
    assert_eq!((status, &body["id"]), (200, &json!("data")), "{body}");
    console.run("while [ ! -e /sys/block/vda/size ]; do sleep 0.1; done");
    assert_eq!(console.run("cat /sys/block/vda/size").trim(), "16384");
    let at = console.run("readlink /sys/block/vda");
    assert!(at.contains(body["bdf"].as_str().unwrap()), "{at} {body}");
    console.run("dd if=/dev/zero bs=64k count=4 2>/dev/null | tr '\\0' x > /tmp/x; cat /tmp/x > /dev/vda; sync");
    let counters = serve.get("vm.counters");
    assert!(counters["data"]["write_ops"].as_u64().unwrap() > 0, "{counters}");

    // Where the guest does not listen it holds on to the device, in the next process too.
    serve.put("vm.pause");
    serve.put_with("vm.remove-device", Some(&json!({"id": "data"})));
    let snapshot = format!("file://{}", serve.folder.path().join("snapshot").display());
    serve.put_with("vm.snapshot", Some(&json!({"destination_url": snapshot})));
    let serve = serve.another();
    serve.put_with("vm.restore", Some(&json!({"source_url": snapshot})));
    let info = serve.get("vm.info");
    assert_eq!(info["config"]["disks"][0]["id"], "data");
    assert_eq!(info["device_tree"]["data"]["removing"], true);
    serve.put("vm.resume");
    let mut console = Console::connect(&serve.console());
    eventually("the guest letting go", || {
        serve.get("vm.info")["config"]["disks"]
            .as_array()
            .unwrap()
            .is_empty()
            .then_some(())
    });
    console.run("true");
    assert!(console.run("ls /sys/block/vda 2>&1").contains("No such file"));
    assert_eq!(&std::fs::read(&image).unwrap()[..4], b"xxxx");
    let (status, body) = serve.call("PUT", "vm.add-disk", Some(&add));
    assert_eq!(status, 200, "the name is free: {body}");
    console.run("while [ ! -e /sys/block/vda/size ]; do sleep 0.1; done");
    assert_eq!(console.run("head -c 4 /dev/vda").trim(), "xxxx");
    serve.put("vm.shutdown");
}

#[test]
fn a_guest_gets_a_network_card_while_it_runs_and_gives_it_and_memory_back() {
    let Some(guest) = Guest::get() else { return };
    if !may_make_taps() {
        return;
    }
    let serve = Serve::start();
    let mut console = serve.boot_config(&json!({
        "memory": {"size": 512 << 20},
        "payload": {"kernel": guest.kernel, "initramfs": guest.initramfs, "cmdline": "console=ttyS0"},
        "serial": {"mode": "Socket", "socket": serve.console()},
        "balloon": {"size": 0},
    }));
    console.wait_for_shell();
    // What the kernel says of devices must not come between the letters of a command; and nobody here loads drivers.
    console.run("dmesg -n 1; modprobe virtio_net");
    let (host, address, mac) = ("198.18.77.5", "198.18.77.6", "52:54:00:12:34:57");
    let tap = format!("rhot{}", std::process::id());
    let add = json!({"tap": tap, "ip": host, "mask": "255.255.255.252", "mac": mac, "id": "card"});
    for _ in 0..2 {
        let (status, body) = serve.call("PUT", "vm.add-net", Some(&add));
        assert_eq!((status, &body["id"]), (200, &json!("card")), "{body}");
        console.run("while [ ! -e /sys/class/net/eth0/address ]; do sleep 0.1; done");
        assert_eq!(console.run("cat /sys/class/net/eth0/address").trim(), mac);
        let at = console.run("readlink /sys/class/net/eth0");
        assert!(at.contains(body["bdf"].as_str().unwrap()), "{at} {body}");
        console.run(&format!("ip addr add {address}/30 dev eth0 && ip link set eth0 up"));
        let pinged = console.run(&format!("ping -c 3 -W 10 {host}"));
        assert!(pinged.contains(" 0% packet loss"), "{pinged}");
        exchange(&mut console, host, 256 << 10);
        serve.put_with("vm.remove-device", Some(&json!({"id": "card"})));
        eventually("the guest letting go", || {
            (serve.get("vm.info")["config"]["net"] == json!([])).then_some(())
        });
        assert!(console.run("ls /sys/class/net/eth0 2>&1").contains("No such file"));
    }

    let available = |console: &mut Console| -> u64 {
        let line = console.run("grep MemAvailable /proc/meminfo");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let before = available(&mut console);
    for size in [128 << 20, 32 << 20, 0_u64] {
        serve.put_with("vm.resize", Some(&json!({"desired_balloon": size})));
        eventually("the balloon", || {
            (serve.get("vm.counters")["balloon"]["actual_bytes"] == size).then_some(())
        });
        assert_eq!(serve.get("vm.info")["config"]["balloon"]["size"], size);
        let (now, taken) = (available(&mut console), size >> 10);
        assert!(
            now + taken / 2 < before || size == 0,
            "{now} of {before} KiB, and {taken} taken"
        );
        assert!(
            now + taken + (16 << 10) > before,
            "{now} of {before} KiB, and {taken} taken"
        );
    }
    let status = serve
        .call("PUT", "vm.resize", Some(&json!({"desired_balloon": 512 << 20})))
        .0;
    assert_eq!(status, 400, "there would be nothing left");
    serve.put("vm.shutdown");
}
