//! A network card, with the guest's own driver.

use std::io::{Read, Write};
use std::net::TcpListener;

use reprise_devices::virtio::{Tap, TapOptions};
use serde_json::json;

use crate::console::Console;
use crate::guest::Guest;
use crate::serve::Serve;
use crate::wait::{Background, EVENTUALLY, accepted};

/// Whether taps can be made here; if not, it is said aloud.
pub fn may_make_taps() -> bool {
    let options = TapOptions {
        pairs: 1,
        ..TapOptions::default()
    };
    let Err(error) = Tap::open(&options) else { return true };
    let required = std::env::var("REPRISE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "tap"));
    assert!(!required, "no tap can be made: {error}");
    eprintln!("skipped: no tap can be made: {error}");
    false
}

/// Bytes that do not repeat soon.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Sends bytes to the guest and takes them back, each over a connection of its own.
pub fn exchange(console: &mut Console, host: &str, length: usize) {
    let bytes = noise(length);
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let theirs = bytes.clone();
    listener.set_nonblocking(true).unwrap();
    let ends = Background::start(move || {
        let stream = || {
            let stream = accepted(|| listener.accept());
            stream.set_read_timeout(Some(EVENTUALLY)).unwrap();
            stream.set_write_timeout(Some(EVENTUALLY)).unwrap();
            stream
        };
        stream().write_all(&theirs).unwrap();
        let mut back = Vec::new();
        stream().read_to_end(&mut back).unwrap();
        back
    });
    let said = console.run(&format!(
        "nc {host} {port} > /tmp/bytes </dev/null && nc {host} {port} < /tmp/bytes; echo status $?"
    ));
    // A guest that could not connect calls nobody, and there is no use in waiting for it.
    assert_eq!(said.trim(), "status 0", "the guest's nc has failed");
    let back = ends.finish("the guest's bytes");
    assert_eq!(back.len(), length);
    assert!(back == bytes, "the bytes are others");
}

#[test]
fn a_guest_uses_a_network_card_with_its_own_driver_across_a_snapshot() {
    let Some(guest) = Guest::get() else { return };
    if !may_make_taps() {
        return;
    }
    let serve = Serve::start();
    let (host, address) = ("198.18.77.1", "198.18.77.2");
    let net = |queues: u32, tap: &str, ip: &str, mac: &str| json!({"tap": tap, "ip": ip, "mask": "255.255.255.252", "mac": mac, "mtu": 1400, "num_queues": queues});
    let tap = format!("reprise{}", std::process::id());
    let mut console = serve.boot_config(&json!({
        "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
        "memory": {"size": 512 << 20},
        "payload": {"kernel": guest.kernel, "initramfs": guest.initramfs, "cmdline": "console=ttyS0"},
        "serial": {"mode": "Socket", "socket": serve.console()},
        "net": [net(4, &tap, host, "52:54:00:12:34:56")],
    }));
    console.wait_for_shell();
    assert_eq!(
        console.run("cat /sys/class/net/eth0/address").trim(),
        "52:54:00:12:34:56"
    );
    assert_eq!(console.run("cat /sys/class/net/eth0/mtu").trim(), "1400");
    let queues = console.run("echo /sys/class/net/eth0/queues/*");
    assert!(queues.contains("rx-1") && queues.contains("tx-1"), "{queues}");
    console.run(&format!("ip addr add {address}/30 dev eth0 && ip link set eth0 up"));
    let pinged = console.run(&format!("ping -c 3 -W 10 {host}"));
    assert!(pinged.contains("0% packet loss"), "{pinged}");
    exchange(&mut console, host, 4 << 20);

    serve.put("vm.pause");
    let snapshot = format!("file://{}", serve.folder.path().join("snapshot").display());
    serve.put_with("vm.snapshot", Some(&json!({"destination_url": snapshot})));
    let counters = serve.get("vm.counters");
    let figure = |name: &str| counters["net0"][name].as_u64().unwrap();
    assert!(
        figure("rx_bytes") > 4 << 20 && figure("tx_bytes") > 4 << 20,
        "{counters}"
    );
    assert!(
        figure("control") > 0,
        "the driver has asked for its queue pairs: {counters}"
    );
    for name in ["malformed", "tx_malformed", "rx_drops", "tx_drops"] {
        assert_eq!(figure(name), 0, "{name}: {counters}");
    }

    let serve = serve.another();
    serve.put_with("vm.restore", Some(&json!({"source_url": snapshot, "resume": true})));
    let mut console = Console::connect(&serve.console());
    console.run("true");
    exchange(&mut console, host, 1 << 20);
    assert_eq!(
        console.run("dmesg | grep -c -e 'NETDEV WATCHDOG' -e 'rx error'").trim(),
        "0"
    );
    serve.put("vm.shutdown");
}
