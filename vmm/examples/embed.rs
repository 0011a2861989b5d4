//! A microVM inside another program: `cargo run --release --example embed -- KERNEL INITRAMFS`. No async runtime.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::{env, error::Error, sync::mpsc, thread};

use reprise_hypervisor::SoftHypervisor;
use reprise_vmm::config::VmConfig;
use reprise_vmm::console::Console;
use reprise_vmm::machine::{Machine, MachineOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = VmConfig::default();
    config.payload.kernel = env::args_os().nth(1).map(Into::into);
    config.payload.initramfs = env::args_os().nth(2).map(Into::into);
    config.payload.cmdline = Some(r#"console=ttyS0 quiet reprise.run="uname -a; poweroff -f""#.into());
    config.validate()?;

    let (console, serial) = UnixStream::pair()?;
    let options = MachineOptions {
        console: Some(Console::stream(serial)?),
        ..MachineOptions::default()
    };
    let (tell, ended) = mpsc::channel();
    let on_end = Box::new(move |end| tell.send(end).expect("main waits for the end"));
    let machine = Machine::new(&config, &SoftHypervisor, options, on_end)?;

    let reader = thread::spawn(move || {
        BufReader::new(console)
            .lines()
            .map_while(Result::ok)
            .for_each(|line| println!("guest: {line}"));
    });
    machine.start();
    let end = ended.recv()?;
    machine.stop();
    reader.join().expect("printing does not panic");
    println!("the machine ended: {end:?}");
    Ok(())
}
