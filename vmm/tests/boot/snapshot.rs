//! A guest goes on in another process.

use std::io::Write;

use serde_json::json;

use crate::console::Console;
use crate::guest::Guest;
use crate::serve::Serve;
use crate::wait::eventually;

#[test]
fn a_guest_is_saved_and_goes_on_in_another_process_as_often_as_one_likes() {
    let Some(guest) = Guest::get() else { return };
    let mut serve = Serve::start();
    let mut console = serve.boot(&guest, &guest.kernel, 2);
    console.wait_for_shell();
    console.run("secret=$((6 * 7)); head -c 3000000 /dev/urandom > /tmp/file; md5sum /tmp/file > /tmp/sum");
    let uptime = |console: &mut Console| -> f64 {
        let told = console.run("cat /proc/uptime");
        told.split_whitespace().next().unwrap().parse().unwrap()
    };
    // Something is under way, whatever the moment.
    console.run("i=0; while true; do i=$((i + 1)); echo $i >> /tmp/count; done &");
    let before = uptime(&mut console);
    let snapshot = format!("file://{}", serve.folder.path().join("snapshot").display());
    serve.put("vm.pause");
    serve.put_with("vm.snapshot", Some(&json!({"destination_url": snapshot})));
    serve.put("vm.resume");
    assert_eq!(console.run("echo $secret").trim(), "42", "it goes on here too");

    for prefault in [false, true] {
        serve = serve.another();
        let source = json!({"source_url": snapshot, "prefault": prefault});
        serve.put_with("vm.restore", Some(&source));
        assert_eq!(serve.state(), "Paused");
        let mut console = Console::connect(&serve.console());
        serve.put("vm.resume");
        assert_eq!(console.run("echo $secret").trim(), "42");
        assert_eq!(console.run("nproc").trim(), "2");
        assert!(console.run("md5sum -c /tmp/sum").contains("OK"));
        let first = uptime(&mut console);
        assert!(first >= before, "{first} {before}");
        let count = |console: &mut Console| -> u64 { console.run("wc -l < /tmp/count").trim().parse().unwrap() };
        let counted = count(&mut console);
        assert_eq!(console.run("sleep 1; echo slept").trim(), "slept");
        assert!(uptime(&mut console) >= first + 1.0, "clocks go on");
        assert!(count(&mut console) > counted, "and so does what ran");
        for cpu in ["0", "1"] {
            let mask = if cpu == "0" { "1" } else { "2" };
            let ran_on = console.run(&format!("taskset {mask} cut -d' ' -f39 /proc/self/stat"));
            assert_eq!(ran_on.trim(), cpu);
        }
        let log = console.run("dmesg | grep -iE 'stall|lockup|unstable|warning|bug:' | head; echo end");
        assert_eq!(log.trim(), "end", "the kernel has noticed nothing");
    }
    // It ends as any other.
    let mut console = Console::connect(&serve.console());
    console.stream.write_all(b"poweroff\n").unwrap();
    eventually("the power-off", || (serve.state() == "Shutdown").then_some(()));
}
