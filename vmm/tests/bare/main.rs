//! Whole machines that run a few instructions of our own instead of a kernel: how a guest ends, and what becomes of one
//! that misbehaves.

#[path = "../../../hypervisor/tests/backends/mod.rs"]
mod backends;
#[path = "../code/mod.rs"]
mod code;
mod notifications;

use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iced_x86::code_asm::*;
use reprise_hypervisor::kvm::Backing;
use reprise_hypervisor::{Hypervisor, HypervisorKind};
use reprise_vmm::config::{CpusConfig, DelayConfig, MemoryConfig, PayloadConfig, VmConfig};
use reprise_vmm::console::Console;
use reprise_vmm::machine::{Machine, MachineEnd, MachineOptions};
use tempfile::TempDir;

use backends::on_each;
use code::{COM1, assemble, debug_exit, image, print};

/// As long as it takes.
const LONG: Duration = Duration::from_secs(120);

/// What the guest printed.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Guest {
    machine: Machine,
    ends: Receiver<MachineEnd>,
    printed: Printed,
    _folder: TempDir,
}

impl Guest {
    fn on(hypervisor: &dyn Hypervisor, code: &[u8]) -> Self {
        Self::with(hypervisor, code, Vec::new())
    }

    fn with(hypervisor: &dyn Hypervisor, code: &[u8], delays: Vec<DelayConfig>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel: PathBuf = folder.path().join("kernel");
        std::fs::write(&kernel, image(code)).unwrap();
        let config = VmConfig {
            cpus: CpusConfig::of(1),
            memory: MemoryConfig::of(16 << 20),
            payload: PayloadConfig {
                kernel: Some(kernel),
                ..PayloadConfig::default()
            },
            delays,
            ..VmConfig::default()
        };
        let printed = Printed::default();
        let options = MachineOptions {
            debug_exit: true,
            console: Some(Console::sink(Box::new(printed.clone())).unwrap()),
            ..MachineOptions::default()
        };
        let (tell, ends) = channel();
        let on_end = Box::new(move |end| tell.send(end).unwrap());
        let machine = Machine::new(&config, hypervisor, options, on_end).unwrap();
        machine.start();
        Self {
            machine,
            ends,
            printed,
            _folder: folder,
        }
    }

    /// Its end, and what it has printed.
    fn end(self) -> (MachineEnd, String) {
        let end = self.ends.recv_timeout(LONG).unwrap();
        self.machine.stop();
        let printed = String::from_utf8(self.printed.0.lock().unwrap().clone()).unwrap();
        (end, printed)
    }
}

#[test]
fn a_guest_prints_and_ends_with_the_byte_it_says() {
    on_each(|hypervisor| {
        let code = assemble(|a| {
            print(a, "hello\n")?;
            debug_exit(a, 0x2a)
        });
        assert_eq!(
            Guest::on(hypervisor, &code).end(),
            (MachineEnd::DebugExit(0x2a), "hello\n".to_owned())
        );
    });
}

#[test]
fn a_guest_powers_off_and_resets_through_acpi() {
    on_each(|hypervisor| {
        let power_off = assemble(|a| {
            a.mov(dx, 0x604)?;
            a.mov(ax, 0x2000 | 5 << 10)?;
            a.out(dx, ax)?;
            a.hlt()
        });
        assert_eq!(Guest::on(hypervisor, &power_off).end().0, MachineEnd::PowerOff);
        let reset = assemble(|a| {
            a.mov(dx, 0x60c)?;
            a.mov(al, 1)?;
            a.out(dx, al)?;
            a.hlt()
        });
        assert_eq!(Guest::on(hypervisor, &reset).end().0, MachineEnd::Reset);
    });
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    on_each(|hypervisor| {
        let code = assemble(|a| {
            print(a, "x")?;
            a.ud2()
        });
        assert_eq!(
            Guest::on(hypervisor, &code).end(),
            (MachineEnd::Shutdown, "x".to_owned()),
            "there is no IDT"
        );
    });
}

#[test]
fn a_jump_into_nowhere_ends_as_on_a_real_machine() {
    on_each(|hypervisor| {
        let code = assemble(|a| {
            a.mov(eax, 0xd000_0000_u32 as i32)?;
            a.jmp(eax)
        });
        // Bytes that nobody claims read as ones, and FF FF is no instruction; there is no IDT. KVM does not fetch from where there
        // is no memory, and leaves it to the rescue.
        assert_eq!(Guest::on(hypervisor, &code).end().0, MachineEnd::Shutdown);
    });
}

#[test]
fn an_instruction_that_nobody_can_execute_ends_a_machine_on_kvm_with_its_bytes() {
    let Some(kvm) = backends::kvm() else { return };
    if Backing::of_this_host() == Backing::Hardware {
        eprintln!("skipped: the processor executes it, or raises #UD itself");
        return;
    }
    // CLZERO
    let end = Guest::on(&kvm, &[0x0f, 0x01, 0xfc]).end().0;
    let MachineEnd::Failed(why) = end else {
        panic!("{end:?}")
    };
    for part in [
        "vCPU 0",
        "cannot emulate",
        "RIP 0x",
        "Protected mode",
        "0f, 01, fc",
        "Clzero",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
}

#[test]
fn a_guest_that_floods_its_console_loses_nothing_and_is_stopped_all_the_same() {
    on_each(|hypervisor| {
        // A port write is much dearer on a KVM.
        let bytes = match hypervisor.kind() {
            HypervisorKind::Soft => 1 << 20,
            HypervisorKind::Kvm => 1 << 14,
        };
        let code = assemble(|a| {
            a.mov(ecx, bytes)?;
            a.mov(dx, COM1)?;
            a.mov(al, 0x78)?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.out(dx, al)?;
            a.dec(ecx)?;
            a.jne(again)?;
            debug_exit(a, 1)
        });
        let (end, printed) = Guest::on(hypervisor, &code).end();
        assert_eq!(end, MachineEnd::DebugExit(1));
        assert_eq!(printed.len(), bytes as usize);
        let endless = assemble(|a| {
            a.mov(dx, COM1)?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.out(dx, al)?;
            a.jmp(again)
        });
        let guest = Guest::on(hypervisor, &endless);
        while guest.printed.0.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        guest.machine.pause().unwrap();
        guest.machine.resume();
        guest.machine.stop();
    });
}

#[test]
fn a_guest_that_halts_for_ever_or_spins_is_paused_resumed_and_stopped() {
    on_each(|hypervisor| {
        let halts = assemble(|a| {
            print(a, "h")?;
            a.cli()?;
            a.hlt()
        });
        let spins = assemble(|a| {
            print(a, "s")?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.jmp(again)
        });
        for code in [halts, spins] {
            let guest = Guest::on(hypervisor, &code);
            while guest.printed.0.lock().unwrap().is_empty() {
                std::thread::yield_now();
            }
            guest.machine.pause().unwrap();
            guest.machine.power_button();
            guest.machine.resume();
            assert!(guest.machine.counters().contains_key("vcpu0"));
            guest.machine.stop();
            assert!(guest.ends.try_recv().is_err());
        }
    });
}

#[test]
fn ports_and_memory_that_nobody_claims_read_as_ones() {
    on_each(|hypervisor| {
        let code = assemble(|a| {
            a.mov(dx, 0x5000)?;
            a.in_(eax, dx)?;
            a.mov(ecx, dword_ptr(0xd000_0000_u64))?;
            a.and(eax, ecx)?;
            a.inc(eax)?;
            let mut wrong = a.create_label();
            a.jne(wrong)?;
            debug_exit(a, 0)?;
            a.set_label(&mut wrong)?;
            debug_exit(a, 1)
        });
        assert_eq!(Guest::on(hypervisor, &code).end().0, MachineEnd::DebugExit(0));
    });
}
