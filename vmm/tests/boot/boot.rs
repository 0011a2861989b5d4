//! A guest boots, is used, is paused, and ends or begins again, as its user or its host wants it.

use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::guest::Guest;
use crate::late::remember;
use crate::serve::Serve;
use crate::wait::{eventually, output};

#[test]
fn a_stock_kernel_boots_over_rest_and_is_used_through_its_console() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let mut console = serve.boot(&guest, &guest.kernel, 1);
    console.wait_for_shell();
    remember(1, &console);
    assert!(console.run("uname -a").contains("Linux guest"));
    assert_eq!(console.run("nproc").trim(), "1");
    let memory = console.run("free -m");
    let total: u32 = memory
        .lines()
        .find_map(|line| line.strip_prefix("Mem:"))
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!((400..512).contains(&total), "{memory}");
    assert!(console.run("cat /proc/cpuinfo").contains("model name"));
    assert_eq!(console.run("cat /sys/class/tty/console/active").trim(), "ttyS0");
    assert_eq!(
        console.run("echo $((6 * 7)); false; echo $?").trim().replace('\r', ""),
        "42\n1"
    );

    // Job control: Ctrl-C ends what runs, not the shell.
    console.stream.write_all(b"sleep 100000\n").unwrap();
    console.expect("sleep 100000");
    thread::sleep(Duration::from_millis(500));
    console.stream.write_all(b"\x03").unwrap();
    console.expect("guest# ");

    let counters = serve.get("vm.counters");
    assert!(counters["serial"]["written"].as_u64().unwrap() > 1000, "{counters}");
    assert_eq!(serve.state(), "Running");
    console.stream.write_all(b"poweroff\n").unwrap();
    eventually("the power-off", || (serve.state() == "Shutdown").then_some(()));
    assert!(!serve.console().exists(), "no socket is left behind");
    serve.put("vm.delete");
    serve.put("vmm.shutdown");
}

#[test]
fn two_vcpus_boot_and_both_work() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let mut console = serve.boot(&guest, &guest.kernel, 2);
    console.wait_for_shell();
    remember(2, &console);
    assert_eq!(console.run("nproc").trim(), "2");
    for cpu in ["0", "1"] {
        let mask = if cpu == "0" { "1" } else { "2" };
        let ran_on = console.run(&format!("taskset {mask} cut -d' ' -f39 /proc/self/stat"));
        assert_eq!(ran_on.trim(), cpu);
    }
    console.run("for i in 1 2 3 4; do (dd if=/dev/zero bs=64k count=200 2>/dev/null | md5sum > /tmp/$i) & done; wait");
    let sums = console.run("cat /tmp/1 /tmp/2 /tmp/3 /tmp/4 | sort -u | wc -l");
    assert_eq!(sums.trim(), "1", "four times the same sum");
    for vcpu in ["vcpu0", "vcpu1"] {
        assert!(serve.get("vm.counters")[vcpu].is_object());
    }
    serve.put("vm.shutdown");
    assert_eq!(serve.state(), "Shutdown");
}

#[test]
fn the_power_button_runs_the_guest_s_own_shutdown() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let mut console = serve.boot(&guest, &guest.kernel, 1);
    console.wait_for_shell();
    serve.put("vm.power-button");
    console.expect("reprise: power button");
    console.expect("The system is going down NOW!");
    eventually("the power-off", || (serve.state() == "Shutdown").then_some(()));
}

#[test]
fn a_paused_guest_is_silent_and_goes_on_where_it_was() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let mut console = serve.boot(&guest, &guest.kernel, 1);
    console.wait_for_shell();
    console.run("i=0; (while true; do i=$((i + 1)); echo tick $i; done) > /dev/ttyS0 &");
    console.expect("tick 20");
    serve.put("vm.pause");
    assert_eq!(serve.state(), "Paused");
    let before = serve.get("vm.counters");
    thread::sleep(Duration::from_millis(300));
    let after = serve.get("vm.counters");
    assert_eq!(before["vcpu0"], after["vcpu0"]);
    assert_eq!(before["serial"]["writes"], after["serial"]["writes"]);
    serve.put("vm.resume");
    let seen: u32 = console.seen.matches("tick ").count().try_into().unwrap();
    console.expect(&format!("tick {}\r\n", seen + 20));
    let numbers: Vec<u32> = console
        .seen
        .lines()
        .filter_map(|line| line.strip_prefix("tick ")?.parse().ok())
        .collect();
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "not a line is lost: {numbers:?}"
    );
    serve.put("vm.shutdown");
}

#[test]
fn a_reboot_boots_again() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let mut console = serve.boot(&guest, &guest.kernel, 1);
    console.expect("reprise: shell ready");
    console.stream.write_all(b"reboot -f\n").unwrap();
    console.expect("reboot: Restarting system");
    console.expect("reprise: shell ready");
    serve.put("vm.reboot");
    console.expect("reprise: shell ready");
    assert_eq!(serve.state(), "Running");
    serve.put("vm.shutdown");
}

#[test]
fn a_distribution_s_vmlinuz_boots_on_the_command_line_and_powers_off_with_status_0() {
    let Some(guest) = Guest::get() else { return };
    let output = output(
        Command::new(env!("CARGO_BIN_EXE_reprise"))
            .args(["run", "--hypervisor", "soft", "--memory", "512M", "--cmdline"])
            .arg(r#"console=ttyS0 reprise.quiet reprise.run="uname -r; poweroff -f""#)
            .arg("--kernel")
            .arg(&guest.packed)
            .arg("--initramfs")
            .arg(&guest.initramfs),
    );
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("Hypervisor detected"), "{printed}");
    assert!(printed.contains("reprise: init reached"), "{printed}");
    assert!(
        output.status.success(),
        "{:?}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
