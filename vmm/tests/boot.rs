//! Whole guests: Debian's kernel, booted through REST or on the command line, used through its serial console.
//!
//! `scripts/guest.sh` makes the guest; without it these tests say that they are skipped, and with `REPRISE_REQUIRE=guest`
//! in the environment they fail instead.

mod log;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use reprise_devices::virtio::{Tap, TapOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

use log::Log;

/// Long enough for anything that is going to happen, on a slow host and without optimisation.
const EVENTUALLY: Duration = Duration::from_secs(600);

/// The guest's files.
struct Guest {
    kernel: PathBuf,
    packed: PathBuf,
    initramfs: PathBuf,
    /// One whole guest at a time: they are as fast as the host, and several on one host only wait for each other.
    _turn: MutexGuard<'static, ()>,
}

impl Guest {
    fn get() -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
        let [kernel, packed, initramfs] = ["vmlinux", "vmlinuz", "initramfs.cpio.gz"].map(|name| folder.join(name));
        if kernel.exists() && packed.exists() && initramfs.exists() {
            let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            return Some(Self {
                kernel,
                packed,
                initramfs,
                _turn,
            });
        }
        let required = std::env::var("REPRISE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "guest"));
        assert!(
            !required,
            "there is no guest in {}; scripts/guest.sh makes one",
            folder.display()
        );
        eprintln!(
            "skipped: there is no guest in {}; scripts/guest.sh makes one",
            folder.display()
        );
        None
    }
}

/// A running `reprise serve`, killed at the end if it still runs.
struct Serve {
    child: Child,
    folder: TempDir,
}

impl Serve {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(folder: TempDir) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_reprise"))
            .args(["serve", "--hypervisor", "soft", "--api-socket"])
            .arg(folder.path().join("api"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let serve = Self { child, folder };
        eventually("the API socket", || {
            UnixStream::connect(serve.folder.path().join("api")).ok()
        });
        serve
    }

    /// Kills it, and starts another one in the same place.
    fn another(mut self) -> Self {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Self::start_in(folder)
    }

    fn console(&self) -> PathBuf {
        self.folder.path().join("console")
    }

    /// One call: the status and the body.
    fn call(&self, method: &str, name: &str, body: Option<&Value>) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.folder.path().join("api")).unwrap();
        let body = body.map(Value::to_string).unwrap_or_default();
        write!(
            stream,
            "{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn put(&self, name: &str) {
        self.put_with(name, None);
    }

    fn put_with(&self, name: &str, body: Option<&Value>) {
        let (status, body) = self.call("PUT", name, body);
        assert_eq!(status, 204, "{name}: {body}");
    }

    fn get(&self, name: &str) -> Value {
        let (status, body) = self.call("GET", name, None);
        assert_eq!(status, 200, "{name}: {body}");
        body
    }

    /// The sum of a counter over all vCPUs.
    fn vcpus_counter(&self, name: &str) -> u64 {
        let counters = self.get("vm.counters");
        let vcpus = counters.as_object().unwrap().iter();
        vcpus
            .filter(|(device, _)| device.starts_with("vcpu"))
            .map(|(_, figures)| figures[name].as_u64().unwrap())
            .sum()
    }

    fn state(&self) -> String {
        self.get("vm.info")["state"].as_str().unwrap().to_owned()
    }

    /// Creates and boots the machine, and connects to its console.
    fn boot(&self, guest: &Guest, kernel: &Path, vcpus: u32) -> Console {
        let cpus = json!({"boot_vcpus": vcpus, "max_vcpus": vcpus});
        self.boot_with(guest, kernel, &cpus, "console=ttyS0", &json!([]))
    }

    /// The same, with these `cpus` and this command line, and devices that are late.
    fn boot_with(&self, guest: &Guest, kernel: &Path, cpus: &Value, cmdline: &str, delays: &Value) -> Console {
        self.boot_config(&json!({
            "cpus": cpus,
            "memory": {"size": 512 << 20},
            "payload": {"kernel": kernel, "initramfs": guest.initramfs, "cmdline": cmdline},
            "serial": {"mode": "Socket", "socket": self.console()},
            "delays": delays,
        }))
    }

    /// The same, with a whole configuration whose serial port leads to the console's socket.
    fn boot_config(&self, config: &Value) -> Console {
        let (status, body) = self.call("PUT", "vm.create", Some(config));
        assert_eq!(status, 204, "{body}");
        self.put("vm.boot");
        Console::connect(&self.console())
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A guest's serial console.
struct Console {
    stream: UnixStream,
    /// All that was printed so far.
    seen: String,
    /// How much of it has been expected.
    expected: usize,
}

impl Console {
    fn connect(path: &Path) -> Self {
        let stream = eventually("the console", || UnixStream::connect(path).ok());
        Self {
            stream,
            seen: String::new(),
            expected: 0,
        }
    }

    /// Waits for `text` after what was expected before; what lies between.
    fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + EVENTUALLY;
        self.stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        loop {
            if let Some(at) = self.seen[self.expected..].find(text) {
                let between = self.seen[self.expected..self.expected + at].to_owned();
                self.expected += at + text.len();
                return between;
            }
            let mut bytes = [0; 4096];
            let read = self.stream.read(&mut bytes);
            let ended = matches!(read, Ok(0));
            self.seen += &String::from_utf8_lossy(&bytes[..read.unwrap_or(0)]);
            let late = Instant::now() > deadline;
            assert!(!(ended || late), "{text:?} never came; the guest said:\n{}", self.seen);
        }
    }

    fn wait_for_shell(&mut self) {
        self.expect("reprise: init reached");
        self.expect("reprise: shell ready");
        self.expect("guest# ");
        // A serial port has no size, and the shell breaks the lines that it echoes at the 80th column.
        self.run("stty cols 1000");
    }

    /// What was printed until there was a shell.
    fn boot_log(&self) -> &str {
        self.seen.split("reprise: shell ready").next().unwrap()
    }

    /// Runs a command in the guest's shell; what it printed.
    fn run(&mut self, command: &str) -> String {
        self.stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        // The terminal echoes the command first.
        self.expect(command);
        self.expect("\n");
        self.expect("guest# ")
    }
}

fn eventually<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + EVENTUALLY;
    loop {
        if let Some(got) = get() {
            return got;
        }
        assert!(Instant::now() < deadline, "{what} never came");
        thread::sleep(Duration::from_millis(20));
    }
}

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

/// Has processes move from one vCPU to another and leave translations of what they give back behind.
const WANDER: &str = "i=0; while [ $i -lt 40 ]; do taskset 1 taskset 2 true; i=$((i + 1)); done";

#[test]
fn a_guest_of_kvm_makes_kvm_s_hypercalls() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    // With two processors an IPI never goes to several, and with three only if there is no shorthand for "all others".
    let cpus = json!({"boot_vcpus": 3, "max_vcpus": 3});
    let mut console = serve.boot_with(
        &guest,
        &guest.kernel,
        &cpus,
        "console=ttyS0 no_ipi_broadcast=1",
        &json!([]),
    );
    console.wait_for_shell();
    let log = console.run("dmesg");
    for line in [
        "Hypervisor detected: KVM",
        "kvm-guest: setup PV IPIs",
        "kvm-guest: PV spinlocks enabled",
        "kvm-guest: setup PV sched yield",
    ] {
        assert!(log.contains(line), "{line:?} is not in\n{log}");
    }
    console.run(WANDER);
    assert!(serve.vcpus_counter("kvm_send_ipi") > 0);
    // How often a processor was kicked or yielded to is a matter of luck; that nothing was refused is not.
    assert_eq!(serve.vcpus_counter("hypercalls_refused"), 0);
    serve.put("vm.shutdown");
}

#[test]
fn a_guest_of_hyper_v_makes_hyper_v_s_hypercalls() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let cpus = json!({"boot_vcpus": 2, "max_vcpus": 2, "kvm_hyperv": true});
    let mut console = serve.boot_with(&guest, &guest.kernel, &cpus, "console=ttyS0", &json!([]));
    console.wait_for_shell();
    let log = console.run("dmesg");
    for line in [
        "Hypervisor detected: Microsoft Hyper-V",
        "Hyper-V: Using hypercall for remote TLB flush",
        "Hyper-V: Using IPI hypercalls",
    ] {
        assert!(log.contains(line), "{line:?} is not in\n{log}");
    }
    assert!(!log.contains("unchecked MSR access"), "{log}");
    let clock = console.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource");
    assert_eq!(clock.trim(), "hyperv_clocksource_tsc_page");
    console.run(WANDER);
    for name in ["hv_send_ipi", "hv_flush_space"] {
        assert!(serve.vcpus_counter(name) > 0, "{name}");
    }
    for name in ["hypercalls_refused", "kvm_send_ipi", "kvm_kick"] {
        assert_eq!(serve.vcpus_counter(name), 0, "{name}");
    }
    serve.put("vm.shutdown");
}

#[test]
fn every_processor_model_boots_with_the_flags_of_its_level_and_without_those_of_the_next() {
    let Some(guest) = Guest::get() else { return };
    let v2 = ["cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2", "aes"];
    let v3 = [
        "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave", "adx",
    ];
    let v4 = ["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];
    // A kernel that is entered at its PVH entry has missed its chance of five-level paging, and does not show `la57`.
    let host = ["gfni", "vaes", "pku", "ospke", "rdpid"];
    let levels = [("v2", &v2[..]), ("v3", &v3[..]), ("v4", &v4[..]), ("host", &host[..])];
    for (own, (model, _)) in levels.iter().enumerate() {
        // Multiplications with additions are the host's own.
        if own > 0 && !is_x86_feature_detected!("fma") {
            eprintln!("skipped: {model}: this processor has no FMA");
            continue;
        }
        let serve = Serve::start();
        let cpus = json!({"boot_vcpus": 1, "max_vcpus": 1, "model": model});
        let mut console = serve.boot_with(&guest, &guest.kernel, &cpus, "console=ttyS0", &json!([]));
        console.wait_for_shell();
        let line = console.run("grep -m1 ^flags /proc/cpuinfo");
        let flags: Vec<&str> = line.split_whitespace().collect();
        for (level, (_, expected)) in levels.iter().enumerate() {
            for flag in *expected {
                // XSAVE itself is there without what it is for.
                let there = level <= own || *flag == "xsave";
                assert_eq!(flags.contains(flag), there, "{flag} of {model}: {line}");
            }
        }
        serve.put("vm.shutdown");
    }
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
    let output = Command::new(env!("CARGO_BIN_EXE_reprise"))
        .args(["run", "--hypervisor", "soft", "--memory", "512M", "--cmdline"])
        .arg(r#"console=ttyS0 reprise.quiet reprise.run="uname -r; poweroff -f""#)
        .arg("--kernel")
        .arg(&guest.packed)
        .arg("--initramfs")
        .arg(&guest.initramfs)
        .stdin(Stdio::null())
        .output()
        .unwrap();
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

#[test]
fn two_vcpus_whose_hot_code_is_translated_boot_and_work() {
    let Some(guest) = Guest::get() else { return };
    let output = Command::new(env!("CARGO_BIN_EXE_reprise"))
        .args(["run", "--hypervisor", "soft", "--memory", "512M"])
        .args(["--cpus", "2,translate=on", "--cmdline"])
        .arg(r#"console=ttyS0 quiet reprise.test="dd if=/dev/zero bs=64k count=64 2>/dev/null | sha256sum; nproc""#)
        .arg("--kernel")
        .arg(&guest.kernel)
        .arg("--initramfs")
        .arg(&guest.initramfs)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let zeros = "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8  -";
    for line in [zeros, "2", "reprise: status 0"] {
        assert!(
            printed.lines().any(|printed| printed.trim() == line),
            "{line}: {printed}"
        );
    }
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    if told.contains("is not translated") {
        eprintln!("interpreted all the same, for this host lacks something: {told}");
    }
}

/// What was printed by machines with prompt devices, by their number of vCPUs: one boot serves several tests.
static PROMPT: Mutex<BTreeMap<u32, String>> = Mutex::new(BTreeMap::new());

fn remember(vcpus: u32, console: &Console) {
    let mut prompt = PROMPT.lock().unwrap_or_else(PoisonError::into_inner);
    prompt.insert(vcpus, console.boot_log().to_owned());
}

fn prompt_log(guest: &Guest, vcpus: u32) -> Log {
    let known = || {
        PROMPT
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&vcpus)
            .cloned()
    };
    if known().is_none() {
        let serve = Serve::start();
        let mut console = serve.boot(guest, &guest.kernel, vcpus);
        console.wait_for_shell();
        remember(vcpus, &console);
        serve.put("vm.delete");
    }
    Log::of(&known().unwrap())
}

/// Every access to every device is answered late, and the guest sees nothing of it but time.
fn boot_with_every_device_late(vcpus: u32) {
    let Some(guest) = Guest::get() else { return };
    let prompt = prompt_log(&guest, vcpus);
    let serve = Serve::start();
    let delays = json!([{"device": "*", "us": "0..300", "seed": vcpus}]);
    let cpus = json!({"boot_vcpus": vcpus, "max_vcpus": vcpus});
    let mut console = serve.boot_with(&guest, &guest.kernel, &cpus, "console=ttyS0", &delays);
    console.wait_for_shell();
    Log::of(console.boot_log()).assert_same(&prompt);

    assert_eq!(console.run("nproc").trim(), vcpus.to_string());
    console.run("for i in 1 2 3 4; do (dd if=/dev/zero bs=64k count=50 2>/dev/null | md5sum > /tmp/$i) & done; wait");
    assert_eq!(console.run("cat /tmp/[1-4] | sort -u | wc -l").trim(), "1");
    serve.put("vm.pause");
    let counters = serve.get("vm.counters");
    let figure = |device: &str, name: &str| counters[device][name].as_u64().unwrap();
    for device in ["acpi", "i8042", "post", "rtc", "serial"] {
        let accesses = figure(device, "reads") + figure(device, "writes");
        assert_eq!(figure(device, "late"), accesses, "{device}");
    }
    let all = counters.as_object().unwrap().values();
    let late: u64 = all.filter_map(|own| own["late"].as_u64()).sum();
    assert!(late > 10_000 && figure("rtc", "late") > 10, "{counters}");
    let parked: u64 = (0..vcpus).map(|vcpu| figure(&format!("vcpu{vcpu}"), "parked")).sum();
    assert_eq!(parked, late, "each of them parked a vCPU");
    serve.put("vm.resume");
    serve.put("vm.power-button");
    console.expect("The system is going down NOW!");
    eventually("the power-off", || (serve.state() == "Shutdown").then_some(()));
}

#[test]
fn with_every_device_late_a_guest_prints_the_same_but_for_times() {
    boot_with_every_device_late(1);
}

#[test]
fn with_every_device_late_a_guest_on_two_vcpus_prints_the_same_but_for_times() {
    boot_with_every_device_late(2);
}

/// Whether taps can be made here; if not, it is said aloud.
fn may_make_taps() -> bool {
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
fn exchange(console: &mut Console, host: &str, length: usize) {
    let bytes = noise(length);
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let theirs = bytes.clone();
    let ends = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&theirs).unwrap();
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back
    });
    console.run(&format!(
        "nc {host} {port} > /tmp/bytes </dev/null; nc {host} {port} < /tmp/bytes"
    ));
    let back = ends.join().unwrap();
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

/// What the host has given a process, in bytes.
fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn a_guest_has_a_virtio_console_sockets_to_its_host_and_a_balloon() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let path = |name: &str| serve.folder.path().join(name);
    let mut console = serve.boot_config(&json!({
        "memory": {"size": 512 << 20},
        "payload": {"kernel": guest.kernel, "initramfs": guest.initramfs, "cmdline": "console=ttyS0"},
        "serial": {"mode": "Socket", "socket": serve.console()},
        "console": {"mode": "Socket", "socket": path("hvc")},
        "vsock": {"cid": 42, "socket": path("v.sock")},
        "balloon": {"size": 128 << 20, "free_page_reporting": true},
    }));
    console.wait_for_shell();

    let mut hvc = Console::connect(&path("hvc"));
    console.run("stty -F /dev/hvc0 -echo; echo to the host >/dev/hvc0");
    hvc.expect("to the host\r\n");
    hvc.stream.write_all(b"to the guest\n").unwrap();
    assert!(console.run("head -n 1 </dev/hvc0").contains("to the guest"));

    let total = console.run("grep MemTotal /proc/meminfo");
    let total: u64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    eprintln!("MemTotal with a balloon of 128 MiB: {total} KiB");
    let figures = eventually("the balloon", || {
        let figures = serve.get("vm.counters")["balloon"].clone();
        (figures["actual_bytes"] == 128 << 20).then_some(figures)
    });
    assert_eq!(figures["inflated_pages"], (128 << 20) / 4096, "{figures}");
    let now = console.run("grep MemTotal /proc/meminfo");
    let now: u64 = now.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(now < (512 - 128) << 10, "{now} KiB");
    console.run("dd if=/dev/zero of=/tmp/large bs=1M count=128 2>/dev/null");
    let full = resident(serve.child.id());
    console.run("rm /tmp/large");
    let less = eventually("memory that the guest does not use", || {
        let less = resident(serve.child.id());
        (less + (100 << 20) < full).then_some(less)
    });
    eprintln!(
        "resident: {} MiB with a large file in the guest, {} MiB after",
        full >> 20,
        less >> 20
    );

    if !console.run("command -v vsock").contains("/bin/vsock") {
        eprintln!("skipped: the guest has no program for vsock, since scripts/guest.sh found no C compiler");
        return;
    }
    let listener = std::os::unix::net::UnixListener::bind(path("v.sock_5000")).unwrap();
    let answering = thread::spawn(move || {
        let (mut caller, _) = listener.accept().unwrap();
        let mut said = String::new();
        caller.read_to_string(&mut said).unwrap();
        caller.write_all(format!("you said {said}\n").as_bytes()).unwrap();
    });
    assert!(console.run("vsock call 5000 ping").contains("you said ping"));
    answering.join().unwrap();
    assert!(console.run("vsock call 5001 ping").contains("reset"), "nobody is there");

    console.run("vsock echo 52 &");
    let mut caller = eventually("the guest's answer", || {
        let mut caller = UnixStream::connect(path("v.sock")).unwrap();
        caller.write_all(b"CONNECT 52\n").unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            if caller.read(&mut byte).unwrap() == 0 {
                return None;
            }
            line.push(byte[0]);
        }
        assert!(line.starts_with(b"OK "), "{line:?}");
        Some(caller)
    });
    // More than any buffer on the way holds.
    let sent: Vec<u8> = (0..2_u32 << 20).map(|at| (at % 251) as u8).collect();
    let mut speaker = caller.try_clone().unwrap();
    let text = sent.clone();
    let speaking = thread::spawn(move || {
        speaker.write_all(&text).unwrap();
        speaker.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let start = Instant::now();
    let mut heard = Vec::new();
    caller.read_to_end(&mut heard).unwrap();
    eprintln!("2 MiB to the guest and back in {:?}", start.elapsed());
    speaking.join().unwrap();
    assert!(heard == sent, "{} bytes came back", heard.len());
    let figures = serve.get("vm.counters")["vsock"].clone();
    assert!(figures["from_guest"].as_u64().unwrap() >= 2 << 20, "{figures}");
}
