//! An integration test inside a guest: `cargo run --release --example guest_test -- KERNEL INITRAMFS`.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::{env, error::Error, sync::mpsc, thread};

use reprise_hypervisor::auto;
use reprise_vmm::config::VmConfig;
use reprise_vmm::console::Console;
use reprise_vmm::machine::{Machine, MachineEnd, MachineOptions};

/// Runs `script` in a guest: its exit status, and what the guest has printed.
fn in_guest(script: &str) -> Result<(u8, String), Box<dyn Error>> {
    let mut config = VmConfig::default();
    config.payload.kernel = env::args_os().nth(1).map(Into::into);
    config.payload.initramfs = env::args_os().nth(2).map(Into::into);
    config.payload.cmdline = Some(format!(r#"console=ttyS0 quiet reprise.test="{script}""#));
    config.validate()?;

    let (mut console, serial) = UnixStream::pair()?;
    let options = MachineOptions {
        console: Some(Console::stream(serial)?),
        ..MachineOptions::default()
    };
    let (tell, ended) = mpsc::channel();
    let on_end = Box::new(move |end| tell.send(end).expect("somebody waits for the end"));
    let machine = Machine::new(&config, &*auto::choose().hypervisor, options, on_end)?;

    let printed = thread::spawn(move || {
        let mut text = String::new();
        console.read_to_string(&mut text).map(|_| text)
    });
    machine.start();
    let end = ended.recv()?;
    machine.stop();
    let printed = printed.join().expect("reading does not panic")?;
    match printed.rsplit_once("reprise: status ") {
        Some((output, status)) if end == MachineEnd::PowerOff => {
            let digits = status.split_whitespace().next().unwrap_or_default();
            Ok((digits.parse()?, output.to_owned()))
        }
        _ => Err(format!("the guest ended otherwise: {end:?}, {printed}").into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (status, printed) = in_guest("grep -c ^processor /proc/cpuinfo && uname -s")?;
    assert_eq!(status, 0);
    assert!(printed.contains("1\r\nLinux"), "{printed}");
    assert_eq!(in_guest("exit 3")?.0, 3);
    println!("the guest passed");
    Ok(())
}
