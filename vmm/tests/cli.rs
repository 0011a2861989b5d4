//! The binary `reprise`: its arguments, exit status, sockets and size.

mod code;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::ecx;
use reprise_hypervisor::kvm::Backing;
use reprise_hypervisor::{HypervisorKind, KvmHypervisor};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for anything that is going to happen.
const EVENTUALLY: Duration = Duration::from_secs(60);

fn reprise(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reprise"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs to the end.
fn run(arguments: &[&str]) -> Output {
    reprise(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A running `reprise serve`, killed at the end if it still runs.
struct Serve {
    child: Child,
    socket: PathBuf,
    folder: TempDir,
}

impl Serve {
    fn start(extra: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let child = reprise(&["serve", "--api-socket", socket.to_str().unwrap()])
            .args(extra)
            .spawn()
            .unwrap();
        let serve = Self { child, socket, folder };
        eventually("the socket answers", || UnixStream::connect(&serve.socket).is_ok());
        serve
    }

    fn ctl(&self, call: &[&str]) -> Output {
        reprise(&["ctl", "--api-socket", self.socket.to_str().unwrap()])
            .args(call)
            .output()
            .unwrap()
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// A figure of /proc/PID/status, in KiB.
    fn kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':')
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap()
    }

    fn config(&self, text: &str) -> String {
        let path = self.folder.path().join("vm.json");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < EVENTUALLY, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A kernel that nobody can boot.
fn no_kernel(folder: &Path) -> String {
    let path = folder.join("kernel");
    fs::write(&path, "").unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn wrong_usage_ends_with_status_2() {
    for arguments in [
        &[][..],
        &["fly"],
        &["serve"],
        &["run", "--colour"],
        &["run", "--kernel", "/k", "--cpus", "many"],
        &["run", "--kernel", "/k", "--cpus", "0"],
        &["run", "--kernel", "/k", "--cpus", "100000"],
        &["run", "--kernel", "/k", "--memory", "0"],
        &["run", "--kernel", "/k", "--memory", "512MB"],
        &["run", "--kernel", "/k", "--memory", "1048576T"],
        &["run", "--kernel", "/k", "--memory", "4T,hugepages=on"],
        &["run", "--kernel", "/k", "--serial", "teletype"],
        &["run", "--kernel", "/k", "--serial", "tty", "--console", "tty"],
        &["run", "--kernel", "/k", "--vsock", "cid=2,socket=/s"],
        &["run", "--kernel", "/k", "--balloon", "1T"],
        &["run", "--kernel", "/k", "--event-monitor", "here"],
        &["run", "--kernel", "/k", "--restore", "/s"],
        &["run", "--restore", "/s", "--memory", "512M"],
        &["run", "--kernel", "/k", "--prefault"],
        &["serve", "--api-socket", "fd=x"],
        &["ctl", "--api-socket", "/s", "dance"],
        &["ctl", "--api-socket", "/s", "snapshot"],
        &["ctl", "--api-socket", "/s", "restore"],
        &["ctl", "ping"],
        &["openapi", "now"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn run_without_a_kernel_says_what_is_missing_and_how_to_get_it() {
    let output = run(&["run"]);
    assert_eq!(output.status.code(), Some(2));
    let told = stderr(&output);
    assert!(
        told.contains("--kernel FILE is missing") && told.contains("scripts/guest.sh"),
        "{told}"
    );
}

#[test]
fn a_machine_that_cannot_be_built_ends_with_status_1_and_leaves_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let kernel = no_kernel(folder.path());
    let output = run(&[
        "run",
        "--kernel",
        &kernel,
        "--serial",
        "null",
        "--api-socket",
        socket.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("error: "), "{}", stderr(&output));
    assert!(!socket.exists());
}

#[test]
fn kvm_is_what_runs_the_machine_or_what_the_error_is_about() {
    let output = run(&["run", "-v", "--kernel", "/k", "--hypervisor", "kvm"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    let expected = match KvmHypervisor::open() {
        Ok(_) => r#"("hypervisor", "kvm")"#.to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn a_guest_that_kvm_cannot_go_on_with_ends_with_status_1_and_is_explained() {
    if KvmHypervisor::open().is_err() || Backing::of_this_host() == Backing::Hardware {
        eprintln!("skipped: only a KVM in software gives such an instruction up");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (kernel, events) = (folder.path().join("kernel"), folder.path().join("events"));
    let guest = code::assemble(|a| {
        code::print(a, "x")?;
        // CLZERO
        a.db(&[0x0f, 0x01, 0xfc])?;
        code::debug_exit(a, 0)
    });
    fs::write(&kernel, code::image(&guest)).unwrap();
    let output = run(&[
        "run",
        "--hypervisor",
        "kvm",
        "--serial",
        "null",
        "--memory",
        "64M",
        "--kernel",
        kernel.to_str().unwrap(),
        "--event-monitor",
        &format!("path={}", events.display()),
    ]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let events = fs::read_to_string(&events).unwrap();
    for part in [
        "cannot emulate an instruction",
        "RIP 0x2000",
        "Protected mode",
        "0f, 01, fc",
    ] {
        assert!(text.contains(part), "{part}: {text}");
        assert!(events.contains(part), "{part}: {events}");
    }
}

/// Runs a guest of a few instructions on the processor in software, to its status by the debug-exit port.
fn run_soft(folder: &Path, guest: &[u8], more: &[&str]) -> Output {
    let kernel = folder.join("kernel");
    fs::write(&kernel, code::image(guest)).unwrap();
    reprise(&[
        "run",
        "--hypervisor",
        "soft",
        "--serial",
        "null",
        "--memory",
        "64M",
        "--debug-exit",
    ])
    .args(["--kernel", kernel.to_str().unwrap()])
    .args(more)
    .output()
    .unwrap()
}

#[test]
fn a_host_that_forbids_executable_memory_interprets_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let guest = code::assemble(|a| code::debug_exit(a, 5));
    // As a policy of the host would: no memory is shared and executable. What this thread starts inherits that.
    let forbid = || {
        let is = |argument, value| {
            let all = SeccompCmpOp::MaskedEq(value);
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, all, value).unwrap()
        };
        let shared = is(3, libc::MAP_SHARED as u64);
        let rule = SeccompRule::new(vec![is(2, libc::PROT_EXEC as u64), shared]).unwrap();
        let rules = [(libc::SYS_mmap, vec![rule])].into_iter().collect();
        let refuse = SeccompAction::Errno(libc::EACCES as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64).unwrap();
        let program: BpfProgram = filter.try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
    };
    let outputs = [(false, "2"), (true, "2"), (true, "2,translate=off")].map(|(forbids, cpus)| {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                if forbids {
                    forbid();
                }
                run_soft(folder.path(), &guest, &["--cpus", cpus])
            });
            thread.join().unwrap()
        })
    });
    for output in &outputs {
        assert_eq!(output.status.code(), Some(5 << 1 | 1), "{}", stderr(output));
    }
    let told = stderr(&outputs[1]);
    assert_eq!(
        told.matches("is not translated but interpreted").count(),
        1,
        "once: {told}"
    );
    assert!(
        told.contains("executable code") && told.contains("Permission denied"),
        "{told}"
    );
    let told = "is not translated";
    assert!(!stderr(&outputs[2]).contains(told), "nobody asked for it");
    if std::arch::is_x86_feature_detected!("bmi2") {
        assert!(!stderr(&outputs[0]).contains(told));
    }
}

#[test]
fn info_says_whether_hot_code_is_translated() {
    let serve = Serve::start(&["--hypervisor", "soft"]);
    let kernel = serve.folder.path().join("kernel");
    let guest = code::assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.dec(ecx)?;
        a.jmp(again)
    });
    fs::write(&kernel, code::image(&guest)).unwrap();
    let info = || -> Value { serde_json::from_slice(&serve.ctl(&["info"]).stdout).unwrap() };
    let translated = || {
        let counters: Value = serde_json::from_slice(&serve.ctl(&["counters"]).stdout).unwrap();
        counters["vcpu0"]["translated_instructions"].as_u64().unwrap()
    };
    let possible = std::arch::is_x86_feature_detected!("bmi2");
    for (translate, expected) in [
        ("", possible),
        (r#", "translate": true"#, possible),
        (r#", "translate": false"#, false),
    ] {
        let config = serve.config(&format!(
            r#"{{"payload": {{"kernel": "{}"}}, "cpus": {{"boot_vcpus": 1, "max_vcpus": 1{translate}}}}}"#,
            kernel.display()
        ));
        assert!(serve.ctl(&["create", &config]).status.success());
        assert_eq!(info()["config"]["cpus"]["translate"], !translate.ends_with("false"));
        assert_eq!(info()["translating"], false, "there is no machine yet");
        assert!(serve.ctl(&["boot"]).status.success());
        assert_eq!(info()["translating"], expected, "{translate}");
        if expected {
            eventually("translated code", || translated() > 1_000_000);
        }
        let snapshot = serve.folder.path().join("snapshot");
        let snapshot = snapshot.to_str().unwrap();
        assert!(serve.ctl(&["snapshot", snapshot]).status.success());
        assert!(serve.ctl(&["shutdown"]).status.success());
        assert_eq!(info()["translating"], false, "there is no machine any more");
        assert!(serve.ctl(&["delete"]).status.success());
        // As it was, in a new machine.
        assert!(serve.ctl(&["restore", snapshot, "--resume"]).status.success());
        assert_eq!(info()["translating"], expected, "{translate}, restored");
        if expected {
            eventually("translated code", || translated() > 1_000_000);
        } else {
            assert_eq!(translated(), 0);
        }
        assert!(serve.ctl(&["delete"]).status.success());
    }
}

#[test]
fn a_profile_says_which_functions_were_executed_and_how_often() {
    let folder = tempfile::tempdir().unwrap();
    let guest = code::assemble(|a| {
        let (mut busy, mut again) = (a.create_label(), a.create_label());
        a.jmp(busy)?;
        a.nops_with_size(0x3e)?;
        a.set_label(&mut busy)?;
        a.mov(ecx, 500_000)?;
        a.set_label(&mut again)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        code::debug_exit(a, 1)
    });
    let map = folder.path().join("map");
    let start = code::CODE;
    fs::write(&map, format!("{start:016x} T start\n{:016x} t busy\n", start + 0x40)).unwrap();
    let profile = folder.path().join("profile");
    let option = format!("path={},symbols={},every=1000", profile.display(), map.display());
    let output = run_soft(folder.path(), &guest, &["--profile", &option]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let told = fs::read_to_string(&profile).unwrap();
    let count = told.strip_prefix("vcpu0;kernel;busy ").expect(&told).trim();
    // A million instructions and a few.
    assert_eq!(count, "1000", "{told}");

    let option = format!("{},symbols=/nowhere", profile.display());
    let output = run_soft(folder.path(), &guest, &["--profile", &option]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("there is no profile"), "{}", stderr(&output));
}

#[test]
fn auto_says_what_runs_the_machine_and_why() {
    let output = run(&["run", "-v", "--kernel", "/k"]);
    let text = stderr(&output);
    let chosen = reprise_hypervisor::auto::choose();
    let kind = match chosen.hypervisor.kind() {
        HypervisorKind::Kvm => "kvm",
        HypervisorKind::Soft => "soft",
    };
    assert!(text.contains(&format!(r#"("hypervisor", "{kind}")"#)), "{text}");
    assert!(text.contains(&chosen.why.to_string()), "{text}");
}

#[test]
fn openapi_prints_the_document() {
    let output = run(&["openapi"]);
    assert!(output.status.success());
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert!(document["paths"]["/vm.create"]["put"].is_object());
}

#[test]
fn ctl_prints_answers_and_tells_refusals() {
    let serve = Serve::start(&[]);
    let ping = serve.ctl(&["ping"]);
    assert!(ping.status.success());
    let answer: Value = serde_json::from_slice(&ping.stdout).unwrap();
    assert_eq!(answer["pid"], serve.child.id());

    let info = serve.ctl(&["info"]);
    assert_eq!(info.status.code(), Some(1));
    assert!(stderr(&info).starts_with("error: there is no VM"), "{}", stderr(&info));

    let bad = serve.config(r#"{"payload": {"kernel": "/k"}, "colour": 1}"#);
    let refused = serve.ctl(&["create", &bad]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("caused by: unknown field `colour`"),
        "{}",
        stderr(&refused)
    );

    let good = serve.config(r#"{"payload": {"kernel": "/k"}}"#);
    let created = serve.ctl(&["create", &good]);
    assert!(
        created.status.success() && created.stdout.is_empty(),
        "{}",
        stderr(&created)
    );
    let info: Value = serde_json::from_slice(&serve.ctl(&["info"]).stdout).unwrap();
    assert_eq!(info["state"], "Created");
    for call in [
        "pause",
        "resume",
        "shutdown",
        "reboot",
        "power-button",
        "counters",
        "snapshot x",
        "restore x",
    ] {
        let call: Vec<&str> = call.split(' ').collect();
        assert_eq!(serve.ctl(&call).status.code(), Some(1), "{call:?}");
    }
    assert!(serve.ctl(&["delete"]).status.success());
    assert_eq!(serve.ctl(&["create", "/nowhere"]).status.code(), Some(1));
}

#[test]
fn ctl_adds_devices_in_the_words_of_run_and_removes_them() {
    let serve = Serve::start(&[]);
    let config = serve.config(r#"{"payload": {"kernel": "/k"}, "balloon": {"size": 0}}"#);
    assert!(serve.ctl(&["create", &config]).status.success());
    let info = || -> Value { serde_json::from_slice(&serve.ctl(&["info"]).stdout).unwrap() };
    for (call, device, section, member, expected) in [
        ("add-disk", "path=/d,id=d", "disks", "path", "/d"),
        ("add-net", "tap=tap9,id=n,mtu=1400", "net", "tap", "tap9"),
        ("add-fs", "tag=share,socket=/f,id=f", "fs", "tag", "share"),
        ("add-user-device", "socket=/u,id=u", "user_devices", "socket", "/u"),
    ] {
        let added = serve.ctl(&[call, device]);
        assert!(added.status.success(), "{call}: {}", stderr(&added));
        let own = info()["config"][section].clone();
        assert_eq!(own.as_array().unwrap().len(), 1, "{call}: {own}");
        assert_eq!(own[0][member], expected, "{call}: {own}");
        let id = own[0]["id"].as_str().unwrap();
        let again = serve.ctl(&[call, device]);
        assert!(stderr(&again).contains("no other device"), "{call}: {}", stderr(&again));
        assert!(serve.ctl(&["remove-device", id]).status.success());
        assert_eq!(info()["config"][section], serde_json::json!([]), "{call}");
    }
    assert!(serve.ctl(&["add-vsock", "cid=3,socket=/v,id=v"]).status.success());
    assert_eq!(info()["config"]["vsock"]["cid"], 3);
    let second = serve.ctl(&["add-vsock", "cid=4,socket=/w"]);
    assert!(stderr(&second).contains("one at most"), "{}", stderr(&second));
    assert!(serve.ctl(&["remove-device", "v"]).status.success());
    assert_eq!(info()["config"]["vsock"], Value::Null);
    assert!(serve.ctl(&["resize", "--balloon", "1M"]).status.success());
    assert_eq!(info()["config"]["balloon"]["size"], 1 << 20);

    assert_eq!(serve.ctl(&["remove-device", "v"]).status.code(), Some(1));
    let told = stderr(&serve.ctl(&["add-net", "fd=3"]));
    assert!(told.contains("fd is given"), "{told}");
    for wrong in [
        &["add-net", "mtu=many"][..],
        &["add-net", "fd=3"],
        &["add-vsock", "socket=/v"],
        &["add-fs", "/f"],
        &["add-user-device", "id=u"],
        &["remove-device"],
        &["resize"],
    ] {
        assert_eq!(serve.ctl(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn ctl_reads_a_configuration_from_its_input() {
    let serve = Serve::start(&[]);
    let mut create = reprise(&["ctl", "--api-socket", serve.socket.to_str().unwrap(), "create", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    create
        .stdin
        .take()
        .unwrap()
        .write_all(br#"{"payload": {"kernel": "/k"}}"#)
        .unwrap();
    assert!(create.wait().unwrap().success());
    assert!(serve.ctl(&["info"]).status.success());
}

#[test]
fn ctl_without_a_server_says_so() {
    let output = run(&["ctl", "--api-socket", "/nowhere/s", "ping"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nowhere/s"), "{}", stderr(&output));
}

#[test]
fn shutdown_vmm_and_signals_end_with_status_0_and_leave_no_socket() {
    for how in ["shutdown-vmm", "TERM", "INT"] {
        let mut serve = Serve::start(&[]);
        match how {
            "shutdown-vmm" => assert!(serve.ctl(&[how]).status.success()),
            signal => serve.signal(signal),
        }
        assert_eq!(serve.child.wait().unwrap().code(), Some(0), "{how}");
        assert!(!serve.socket.exists(), "{how}");
    }
}

#[test]
fn a_socket_in_use_is_refused_and_one_left_behind_is_taken() {
    let mut serve = Serve::start(&[]);
    let path = serve.socket.to_str().unwrap().to_owned();
    let second = run(&["serve", "--api-socket", &format!("path={path}")]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("in use") && stderr(&second).contains(&path),
        "{}",
        stderr(&second)
    );
    assert!(serve.ctl(&["ping"]).status.success(), "the first goes on");

    serve.child.kill().unwrap();
    serve.child.wait().unwrap();
    assert!(serve.socket.exists(), "killed, it left its socket behind");
    serve.child = reprise(&["serve", "--api-socket", &path]).spawn().unwrap();
    eventually("the socket answers", || UnixStream::connect(&serve.socket).is_ok());
    assert!(serve.ctl(&["ping"]).status.success());
}

#[test]
fn an_inherited_socket_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = reprise(&["serve", "--api-socket", "fd=0"])
        .stdin(OwnedFd::from(listener))
        .spawn()
        .unwrap();
    let ctl = ["ctl", "--api-socket", path.to_str().unwrap()];
    assert!(reprise(&ctl).arg("ping").status().unwrap().success());
    assert!(reprise(&ctl).arg("shutdown-vmm").status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(path.exists(), "it belongs to whoever made it");
}

#[test]
fn a_descriptor_that_is_no_listening_socket_is_refused() {
    let output = run(&["serve", "--api-socket", "fd=0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("expected a listening UNIX socket"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn events_go_to_a_file_or_a_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events");
    let mut serve = Serve::start(&["--event-monitor", &format!("path={}", file.display())]);
    let config = serve.config(r#"{"payload": {"kernel": "/k"}}"#);
    assert!(serve.ctl(&["create", &config]).status.success());
    assert!(serve.ctl(&["shutdown-vmm"]).status.success());
    serve.child.wait().unwrap();
    assert_eq!(
        names(fs::File::open(&file).unwrap()),
        ["vmm started", "vm created", "vmm stopping"]
    );

    let socket = folder.path().join("s");
    let mut child = reprise(&[
        "serve",
        "--api-socket",
        socket.to_str().unwrap(),
        "--event-monitor",
        "fd=1",
    ])
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    eventually("the socket answers", || UnixStream::connect(&socket).is_ok());
    assert!(
        run(&["ctl", "--api-socket", socket.to_str().unwrap(), "shutdown-vmm"])
            .status
            .success()
    );
    assert_eq!(names(child.stdout.take().unwrap()), ["vmm started", "vmm stopping"]);
    child.wait().unwrap();
}

fn names(stream: impl Read) -> Vec<String> {
    let lines = BufReader::new(stream).lines();
    lines
        .map(|line| {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert!(event["timestamp"]["secs"].is_u64() && event["properties"].is_object());
            format!(
                "{} {}",
                event["source"].as_str().unwrap(),
                event["event"].as_str().unwrap()
            )
        })
        .collect()
}

#[test]
fn before_a_vm_exists_the_server_is_small_and_a_huge_body_keeps_it_so() {
    let serve = Serve::start(&[]);
    assert!(serve.ctl(&["ping"]).status.success());
    // Most of it is the program's file, which is larger without optimisation.
    let limit = if cfg!(debug_assertions) { 20 << 10 } else { 12 << 10 };
    assert!(serve.kib("VmRSS") < limit, "{} KiB", serve.kib("VmRSS"));
    let mut stream = UnixStream::connect(&serve.socket).unwrap();
    write!(
        stream,
        "PUT /api/v1/vm.create HTTP/1.1\r\nHost: l\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        100 << 20
    )
    .unwrap();
    let part = vec![b' '; 1 << 20];
    for _ in 0..100 {
        stream.write_all(&part).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(serve.kib("VmHWM") < limit + (4 << 10), "{} KiB", serve.kib("VmHWM"));
}

#[test]
fn what_a_call_names_lies_beneath_the_rules_that_serve_was_given() {
    let inside = tempfile::tempdir().unwrap();
    let rule = format!("path={},access=rw", inside.path().display());
    let serve = Serve::start(&["--hypervisor", "soft", "--landlock-rules", &rule]);
    let config = |disk: &Path| {
        let kernel = inside.path().join("kernel");
        fs::write(&kernel, "").unwrap();
        format!(
            r#"{{"payload": {{"kernel": "{}"}}, "disks": [{{"path": "{}"}}]}}"#,
            kernel.display(),
            disk.display()
        )
    };
    let file = serve.config(&config(Path::new("/etc/passwd")));
    let refused = serve.ctl(&["create", &file]);
    let told = stderr(&refused);
    assert!(!refused.status.success());
    assert!(
        told.contains("disks[0].path") && told.contains("--landlock-rules"),
        "{told}"
    );
    let disk = inside.path().join("disk");
    fs::write(&disk, [0; 512]).unwrap();
    let file = serve.config(&config(&disk));
    assert!(serve.ctl(&["create", &file]).status.success());
    let refused = serve.ctl(&["add-disk", "path=/etc/group"]);
    assert!(stderr(&refused).contains("disks[1].path"), "{}", stderr(&refused));
    assert!(
        serve
            .ctl(&["add-disk", &format!("path={},readonly=on,id=again", disk.display())])
            .status
            .success()
    );
    assert!(serve.ctl(&["remove-device", "again"]).status.success());
    let told = stderr(&serve.ctl(&["boot"]));
    assert!(!told.contains("denied"), "the kernel is read and is none: {told}");
}

#[test]
fn every_thread_of_a_server_is_filtered_unless_that_is_turned_off() {
    for (extra, mode) in [
        (&["--hypervisor", "soft"][..], "2"),
        (&["--seccomp", "off"], "0"),
        (&["--seccomp", "false"], "0"),
    ] {
        let serve = Serve::start(extra);
        for task in fs::read_dir(format!("/proc/{}/task", serve.child.id())).unwrap() {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).unwrap();
            assert_eq!(line.trim(), mode, "{status}");
        }
    }
}
