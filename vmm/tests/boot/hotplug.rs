//! Devices that come and go while the guest runs.

use serde_json::json;

use crate::console::Console;
use crate::guest::Guest;
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
