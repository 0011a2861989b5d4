//! Interrupt lines: several sources may assert one, and KVM is told what becomes of it.
//!
//! # Wiring
//! As on the soft backend: line `n` is the IO-APIC's pin `n` and, below 16, the PICs' IRQ `n`. The PIT is GSI 0: IRQ 0 of the
//! PICs and pin 2 of the IO-APIC. So pin 0 has a GSI of its own.
//! # Invariants
//! - What KVM was told of a line is what its sources say, except between a restore and the machine's first going on.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
};
use kvm_ioctls::VmFd;

use super::error::{KvmError, Named};
use super::vm::Machine;
use crate::InterruptLine;

/// The number of lines.
pub const LINES: usize = 24;

/// The GSI of the IO-APIC's pin 0.
const PIN_0: u32 = LINES as u32;
/// How many GSIs the lines have.
pub const GSIS: u32 = PIN_0 + 1;
/// The GSI that the PIT asserts.
const PIT: u32 = super::pit::GSI;
/// The IO-APIC's pin that the PIT drives.
pub const PIT_PIN: u32 = 2;

/// Who asserts what.
#[derive(Debug, Default)]
pub struct Lines(Mutex<[Line; LINES]>);

#[derive(Debug, Clone, Copy, Default)]
struct Line {
    /// How many sources assert it.
    sources: u32,
    /// What KVM was told.
    told: bool,
}

impl Lines {
    /// Wires the lines to the interrupt controllers.
    ///
    /// # Errors
    /// What KVM says.
    pub fn wire(vm: &VmFd) -> Result<(), KvmError> {
        let routing = KvmIrqRouting::from_entries(&routes()).expect("fewer routes than KVM_MAX_IRQ_ROUTES");
        vm.set_gsi_routing(&routing).of_vm("KVM_SET_GSI_ROUTING")
    }

    /// One more (true) or one less source asserts line `line`.
    fn change(&self, vm: &VmFd, line: usize, more: bool) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = lines.get_mut(line) else { return };
        own.sources = if more {
            own.sources.saturating_add(1)
        } else {
            own.sources.saturating_sub(1)
        };
        tell(vm, line, own, own.sources > 0);
    }

    /// Tells KVM what the sources say, wherever that is not what it knows.
    pub fn settle(&self, vm: &VmFd) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (line, own) in lines.iter_mut().enumerate() {
            tell(vm, line, own, own.sources > 0);
        }
    }

    /// Takes it that KVM knows the lines to be as the bits of `levels` say, whatever their sources say.
    pub fn assume(&self, levels: u32) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (line, own) in lines.iter_mut().enumerate() {
            own.told = levels >> line & 1 != 0;
        }
    }

    /// The lines' levels as KVM knows them, line 0 in bit 0.
    pub fn levels(&self) -> u32 {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .enumerate()
            .fold(0, |levels, (line, own)| levels | u32::from(own.told) << line)
    }
}

fn tell(vm: &VmFd, line: usize, own: &mut Line, level: bool) {
    if own.told == level {
        return;
    }
    own.told = level;
    let gsi = if line == 0 { PIN_0 } else { line as u32 };
    if let Err(error) = vm.set_irq_line(gsi, level) {
        tracing::error!(line, level, %error, "KVM refused to change an interrupt line");
    }
}

/// How the lines are wired.
pub fn routes() -> Vec<kvm_irq_routing_entry> {
    let route = |gsi: u32, irqchip: u32, pin: u32| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..kvm_irq_routing_entry::default()
    };
    let pic = |irq: u32| match irq {
        0..8 => route(irq, KVM_IRQCHIP_PIC_MASTER, irq),
        _ => route(irq, KVM_IRQCHIP_PIC_SLAVE, irq - 8),
    };
    let mut routes = vec![
        pic(PIT),
        route(PIT, KVM_IRQCHIP_IOAPIC, PIT_PIN),
        route(PIN_0, KVM_IRQCHIP_IOAPIC, 0),
    ];
    for line in 1..LINES as u32 {
        if line < 16 {
            routes.push(pic(line));
        }
        if line != PIT_PIN {
            routes.push(route(line, KVM_IRQCHIP_IOAPIC, line));
        }
    }
    routes
}

/// One source of an interrupt line.
#[derive(Debug)]
pub struct Source {
    machine: Arc<Machine>,
    line: usize,
    asserted: Mutex<bool>,
}

impl Source {
    /// A source of `line`, which must be one.
    pub fn new(machine: Arc<Machine>, line: usize) -> Self {
        Self {
            machine,
            line,
            asserted: Mutex::new(false),
        }
    }
}

impl InterruptLine for Source {
    fn set(&self, level: bool) {
        let mut asserted = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        if *asserted != level {
            *asserted = level;
            self.machine.lines.change(&self.machine.fd, self.line, level);
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.set(false);
    }
}
