//! What confines the process: seccomp and Landlock, in processes that end of it.

use std::fs::{self, File};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::{env, thread};

use reprise_devices::thread::ThreadKind;
use reprise_vmm::config::LandlockConfig;
use reprise_vmm::sandbox::{self, Kind, Sandbox, Seccomp};
use tempfile::TempDir;

const WHAT: &str = "REPRISE_TEST_PROVOKE";
const FOLDER: &str = "REPRISE_TEST_FOLDER";

/// Does `what`, one of those of [`provoked`], in a process of its own, with a folder to do it in.
fn provoke(what: &str) -> (Output, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "content").unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "provoked", "--nocapture"])
        .env(WHAT, what)
        .env(FOLDER, folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output, folder)
}

/// Not a claim: what the others do in a process of their own.
#[test]
fn provoked() {
    let (Ok(what), Ok(folder)) = (env::var(WHAT), env::var(FOLDER)) else {
        return;
    };
    let folder = Path::new(&folder);
    let sandbox = |seccomp, landlock, rules| Sandbox {
        seccomp,
        landlock,
        rules,
    };
    let file = folder.join("file");
    let link = || fs::hard_link(&file, folder.join("link"));
    let within = |kind: Kind, work: &(dyn Fn() + Sync)| {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                sandbox::confine(kind);
                work();
            });
            thread.join().unwrap();
        });
    };
    let queue = Kind::Device(ThreadKind::Queue);
    match what.as_str() {
        "process" => {
            sandbox(Seccomp::On, true, None).enter().unwrap();
            File::open(&file).unwrap();
            let _ = link();
        }
        "off" => {
            sandbox(Seccomp::Off, true, None).enter().unwrap();
            link().unwrap();
        }
        "log" => {
            sandbox(Seccomp::Log, true, None).enter().unwrap();
            link().unwrap();
        }
        "vcpu" => {
            sandbox(Seccomp::On, true, None).enter().unwrap();
            within(Kind::Vcpu, &|| {
                assert!(File::open(&file).is_err(), "Landlock");
                File::open("/proc/thread-self/schedstat").unwrap();
                let _ = UnixListener::bind(folder.join("socket"));
            });
        }
        "queue" => {
            sandbox(Seccomp::On, false, None).enter().unwrap();
            within(queue, &|| {
                assert!(File::open(&file).is_err(), "refused without Landlock too");
                let _ = UnixListener::bind(folder.join("socket"));
            });
        }
        "keyboard" => {
            sandbox(Seccomp::On, true, None).enter().unwrap();
            within(Kind::Device(ThreadKind::Keyboard), &|| {
                assert!(File::open(&file).is_err());
                let _ = UnixStream::connect(folder.join("socket"));
            });
        }
        "user" => {
            sandbox(Seccomp::On, true, None).enter().unwrap();
            within(Kind::Device(ThreadKind::UserDevice), &|| {
                assert!(File::open(&file).is_err());
                assert!(UnixStream::connect(folder.join("nobody")).is_err(), "nobody is there");
                let _ = fs::remove_file(&file);
            });
        }
        "rules" => {
            fs::create_dir(folder.join("inside")).unwrap();
            fs::create_dir(folder.join("readable")).unwrap();
            fs::write(folder.join("readable/file"), "").unwrap();
            let rules = vec![
                LandlockConfig::new(folder.join("inside"), "rw"),
                LandlockConfig::new(folder.join("readable"), "r"),
            ];
            sandbox(Seccomp::On, true, Some(rules)).enter().unwrap();
            fs::write(folder.join("inside/new"), "").unwrap();
            File::open(folder.join("readable/file")).unwrap();
            assert!(File::options().write(true).open(folder.join("readable/file")).is_err());
            assert!(File::open(&file).is_err());
            let error = Sandbox::lets_through("disks[0].path", &file).unwrap_err().to_string();
            assert!(error.contains("disks[0].path") && error.contains("inside"), "{error}");
            Sandbox::lets_through("disks[0].path", &folder.join("inside/other")).unwrap();
            thread::spawn(move || drop(File::open("/proc/self/status").unwrap()))
                .join()
                .unwrap();
        }
        other => panic!("{other}"),
    }
}

/// The process was ended, and said why.
fn ended_in(what: &str, thread: &str, call: libc::c_long) {
    let (output, folder) = provoke(what);
    let told = String::from_utf8_lossy(&output.stderr);
    let line = format!("error: the thread of {thread} made system call {call}, which its filter does not let through");
    assert!(told.contains(&line), "{told}");
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(!folder.path().join("link").exists() && !folder.path().join("socket").exists());
}

#[test]
fn a_call_that_the_process_is_not_there_for_ends_it_and_is_named() {
    ended_in("process", "the VMM", libc::SYS_linkat);
}

#[test]
fn a_vcpu_opens_nothing_but_how_it_is_scheduled_and_ends_the_process_when_it_binds_a_socket() {
    ended_in("vcpu", "a vCPU", libc::SYS_socket);
}

#[test]
fn a_queue_opens_nothing_and_ends_the_process_when_it_binds_a_socket() {
    ended_in("queue", "a device's queue", libc::SYS_bind);
}

#[test]
fn what_is_typed_reaches_no_file_and_its_thread_ends_the_process_when_it_connects() {
    ended_in("keyboard", "a console's input", libc::SYS_socket);
}

#[test]
fn a_device_in_another_process_is_looked_for_again_and_its_thread_ends_the_process_when_it_removes_a_file() {
    ended_in("user", "a device in another process", libc::SYS_unlink);
}

#[test]
fn where_calls_are_logged_or_let_alone_they_are_made() {
    for what in ["log", "off"] {
        let (output, folder) = provoke(what);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(folder.path().join("link").exists(), "{what}");
    }
}

#[test]
fn the_process_opens_what_lies_beneath_its_rules_and_says_which_they_are() {
    let (output, _folder) = provoke("rules");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
