//! SYSCALLs that a KVM in software leaves half done.
//!
//! `kvm_pvm` executes SYSCALL of ring 3 up to RCX, R11, RFLAGS and RIP, and leaves CS and SS as they were: the first fetch of
//! the guest's kernel is one of ring 3, and a page fault. Nobody is told. But the fault is seen before the kernel has looked at
//! it: with the [`Watch`], KVM stops where the kernel's page fault handler begins; and without it, where the handler begins with
//! an instruction that is given up, as that of a Linux with SMAP does with CLAC. Then it is taken back, and SYSCALL is what is
//! rescued.
//!
//! # Invariants
//! - Only what cannot be anything else is taken for one: the handler has done nothing, the fault is that ring 3 may not fetch
//!   from IA32_LSTAR, and RCX points behind a SYSCALL.
//! # Limits
//! - CR2 keeps what the fault has put there, and R11 the IF that KVM has put there, which is 1.
//! - While KVM watches the handler, breakpoints in the guest's own debug registers are not looked at.

use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug};
use kvm_ioctls::VcpuFd;
use reprise_emulator::cpu::{Attributes, Efer, Mode, Seg, Segment, gpr};
use reprise_emulator::{Emulator, Ram, event};

use super::super::error::{KvmVcpuError, Named};
use super::super::msrs;

/// IA32_STAR, IA32_LSTAR and IA32_FMASK.
const REGISTERS: [u32; 3] = [0xc000_0081, 0xc000_0082, 0xc000_0084];
/// The error code of a page fault (SDM Vol. 3, "Page-Fault Exceptions"): ring 3, on a page that is the supervisor's.
const BY_USER: u64 = 5;
/// Its bit that tells of a fetch, where there is NXE or SMEP.
const FETCH: u64 = 0x10;
/// A handler that has begun so many bytes ago has done nothing yet.
const BEGINNING: u64 = 16;
/// Flat 64-bit code of ring 3.
const CODE: Attributes = Attributes(0xa0fb);
/// Flat data of ring 3.
const DATA: Attributes = Attributes(0xc0f3);

/// DR7: breakpoint 0 matches the execution of an instruction, and bit 10 is 1.
const BREAKPOINT: u64 = 0x402;
/// The watch looks every so many times for where the handler is; kernels place it once.
const PATIENCE: u32 = 64;

/// Has KVM come out (KVM_EXIT_DEBUG) where the guest's page fault handler begins.
///
/// KVM looks for breakpoints at what it emulates, and it emulates ring 0.
#[derive(Debug, Default)]
pub struct Watch {
    /// The handler that KVM has a breakpoint at; 0 is none.
    handler: u64,
    /// So often it is not looked for the handler yet.
    patience: u32,
}

impl Watch {
    /// To be called before KVM_RUN.
    ///
    /// # Errors
    /// What KVM says.
    pub fn look(&mut self, vcpu: &VcpuFd, ram: &Ram) -> Result<(), KvmVcpuError> {
        let Some(patience) = self.patience.checked_sub(1) else {
            self.patience = PATIENCE;
            return self.follow(vcpu, ram);
        };
        self.patience = patience;
        Ok(())
    }

    /// Looks again before the next KVM_RUN: the processor was replaced.
    pub fn forget(&mut self) {
        self.patience = 0;
    }

    fn follow(&mut self, vcpu: &VcpuFd, ram: &Ram) -> Result<(), KvmVcpuError> {
        let system = vcpu.get_sregs().of_vcpu("KVM_GET_SREGS")?;
        let quadword = |linear| {
            let place = vcpu.translate_gva(linear).ok().filter(|place| place.valid != 0)?;
            ram.read(place.physical_address, 8)
        };
        let gate = gate(system.idt.base);
        let is_long = system.efer & Efer::LMA != 0;
        let words = is_long.then(|| Some([quadword(gate)?, quadword(gate.wrapping_add(8))?]));
        let handler = words.flatten().map_or(0, handler);
        if handler != self.handler {
            let mut debug = kvm_guest_debug::default();
            if handler != 0 {
                debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
                (debug.arch.debugreg[0], debug.arch.debugreg[7]) = (handler, BREAKPOINT);
            }
            vcpu.set_guest_debug(&debug).of_vcpu("KVM_SET_GUEST_DEBUG")?;
            self.handler = handler;
        }
        Ok(())
    }
}

/// Where the gate of page faults is, in an IDT of 64-bit mode.
fn gate(idt: u64) -> u64 {
    idt.wrapping_add(u64::from(event::PF) * 16)
}

/// Where a gate of 64-bit mode leads (SDM Vol. 3, "64-Bit Mode IDT").
fn handler(words: [u64; 2]) -> u64 {
    words[0] & 0xffff | words[0] >> 48 << 16 | words[1] << 32
}

/// What an exception in 64-bit mode leaves on the stack (SDM Vol. 3, "64-Bit Mode Stack Frame").
struct Frame {
    error: u64,
    rip: u64,
    cs: u64,
    rsp: u64,
    ss: u64,
}

/// Puts the processor that `emulator` holds before the SYSCALL that `vcpu`'s KVM has left half done; false if there is none.
///
/// # Errors
/// What KVM says.
pub fn take_back(vcpu: &VcpuFd, emulator: &mut Emulator) -> Result<bool, KvmVcpuError> {
    let Some(frame) = fault(emulator) else { return Ok(false) };
    let is_of_user = frame.error & !FETCH == BY_USER && frame.cs & 3 == 3 && frame.rip == emulator.cpu().cr2;
    if !is_of_user {
        return Ok(false);
    }
    let at = emulator.cpu().gpr.get(gpr::RCX).wrapping_sub(2);
    let mut byte = |linear| {
        let mut aside = emulator.aside();
        let place = aside.translate_code(linear)?;
        let mut byte = [0];
        aside.read(place, &mut byte).then_some(byte)
    };
    if byte(at) != Some([0x0f]) || byte(at.wrapping_add(1)) != Some([0x05]) {
        return Ok(false);
    }
    let values = msrs::get(vcpu, &REGISTERS)?;
    let &[star, lstar, fmask] = &*values else {
        return Ok(false);
    };
    if frame.rip != lstar {
        return Ok(false);
    }
    emulator.change(|cpu| {
        (cpu.msr.star, cpu.msr.lstar, cpu.msr.fmask) = (star, lstar, fmask);
        cpu.flags.set_bits(cpu.gpr.get(gpr::R11));
        cpu.segments[Seg::Cs] = Segment::flat(frame.cs as u16, CODE);
        cpu.segments[Seg::Ss] = Segment::flat(frame.ss as u16, DATA);
        cpu.gpr.set(gpr::RSP, frame.rsp);
        cpu.rip = at;
    });
    Ok(true)
}

/// The fault whose handler the processor has just entered, in 64-bit mode.
fn fault(emulator: &mut Emulator) -> Option<Frame> {
    let cpu = emulator.cpu();
    if cpu.view.mode != Mode::Long || cpu.cpl() != 0 {
        return None;
    }
    let (rip, rsp) = (cpu.rip, cpu.gpr.get(gpr::RSP));
    let gate = gate(cpu.idtr.base);
    let mut aside = emulator.aside();
    let mut quadwords = |at: u64, into: &mut [u64]| {
        let mut bytes = [0; 48];
        let bytes = &mut bytes[..8 * into.len()];
        let is_there = aside.read_linear(at, bytes);
        for (value, bytes) in into.iter_mut().zip(bytes.as_chunks().0) {
            *value = u64::from_le_bytes(*bytes);
        }
        is_there
    };
    let (mut words, mut frame) = ([0; 2], [0; 6]);
    if !quadwords(gate, &mut words) {
        return None;
    }
    if rip.wrapping_sub(handler(words)) >= BEGINNING || !quadwords(rsp, &mut frame) {
        return None;
    }
    let [error, rip, cs, _, rsp, ss] = frame;
    Some(Frame {
        error,
        rip,
        cs,
        rsp,
        ss,
    })
}
