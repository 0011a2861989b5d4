//! The architectural state of one logical processor: plain data that can be saved as it stands.
//!
//! # Invariants
//! * [`View`] is a function of the rest; whoever changes a control register, a segment or EFER calls [`Cpu::refresh`].
//! * Nothing here points anywhere: a `Cpu` can be cloned, compared, saved, and continued in another process.

mod check;
pub mod control;
pub mod flags;
pub mod fpu;
pub mod gpr;
pub mod msr;
pub mod segment;
mod view;

use serde::{Deserialize, Serialize};

pub use check::CpuError;
pub use control::{Cr0, Cr4, Efer};
pub use flags::Flags;
pub use fpu::Fpu;
pub use gpr::Gprs;
pub use msr::Msrs;
pub use segment::{Attributes, Seg, Segment, Segments, TableRegister};
pub(crate) use view::CONTEXT_USER;
pub use view::{CodeSize, Mode, View};

use crate::event::Event;

/// What the processor is doing between instructions (SDM Vol. 3, activity states).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Running,
    /// Stopped by HLT or MWAIT until an interrupt.
    Halted,
    /// Stopped by INIT until a start-up IPI.
    WaitForSipi,
    /// Stopped by a triple fault until RESET.
    Shutdown,
}

/// What holds events off for the instruction that comes next (SDM Vol. 3, Masking Exceptions and Interrupts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Shadow {
    /// Nothing.
    #[default]
    None,
    /// The instruction after STI: maskable interrupts wait.
    Sti,
    /// The instruction after MOV SS or POP SS: interrupts and debug traps wait.
    MovSs,
}

/// One logical processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// General-purpose registers.
    pub gpr: Gprs,
    /// Offset of the next instruction in CS. While a decoded block runs: of the block's first instruction.
    pub rip: u64,
    /// RFLAGS.
    pub flags: Flags,
    /// ES, CS, SS, DS, FS, GS with their hidden parts.
    pub segments: Segments,
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table register.
    pub idtr: TableRegister,
    /// Control register 0.
    pub cr0: Cr0,
    /// Linear address of the last page fault.
    pub cr2: u64,
    /// Base of the paging structures, with PCID or cache bits.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: Cr4,
    /// Extended control register 0: the state components that XSAVE manages.
    pub xcr0: u64,
    /// Extended feature enable register.
    pub efer: Efer,
    /// Debug registers 0 to 3: breakpoint addresses.
    pub dr: [u64; 4],
    /// Debug status.
    pub dr6: u64,
    /// Debug control.
    pub dr7: u64,
    /// The other model-specific registers that live in the processor.
    pub msr: Msrs,
    /// x87, MXCSR and vector registers.
    pub fpu: Box<Fpu>,
    /// Running, halted, …
    pub activity: Activity,
    /// What the last instruction holds off.
    pub shadow: Shadow,
    /// Breakpoints on data that have been met and are yet to be told, as DR6 has them: a load of SS holds them up for one
    /// instruction, and a software interrupt until it is delivered.
    #[serde(default)]
    pub breakpoints: u8,
    /// An NMI is being handled; the next waits for IRET.
    pub nmi_blocked: bool,
    /// An exception or interrupt that is to be delivered before the next instruction.
    pub event: Option<Event>,
    /// Derived from the above by [`Cpu::refresh`].
    #[serde(skip)]
    pub view: View,
}

impl Default for Cpu {
    fn default() -> Cpu {
        Cpu::reset()
    }
}

impl Cpu {
    /// The state after RESET (SDM Vol. 3, Processor State After Reset): real mode, at 0xFFFF_FFF0.
    pub fn reset() -> Cpu {
        let mut cpu = Cpu {
            gpr: Gprs::default(),
            rip: 0xfff0,
            flags: Flags::default(),
            segments: Segments::real_mode(),
            ldtr: Segment::null_system(segment::LDT),
            tr: Segment::null_system(segment::TSS32_BUSY),
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            cr0: Cr0(0x6000_0010),
            cr2: 0,
            cr3: 0,
            cr4: Cr4(0),
            xcr0: 1,
            efer: Efer(0),
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            msr: Msrs::default(),
            fpu: Box::new(Fpu::default()),
            activity: Activity::Running,
            shadow: Shadow::None,
            breakpoints: 0,
            nmi_blocked: false,
            event: None,
            view: View::default(),
        };
        let cs = &mut cpu.segments[Seg::Cs];
        cs.selector = 0xf000;
        cs.base = 0xffff_0000;
        cpu.refresh();
        cpu
    }

    /// The state after INIT (SDM Vol. 3, Processor State After Reset, column INIT): as after RESET, but caches, MSRs,
    /// x87, vector registers and the caching bits of CR0 stay.
    pub fn init(&mut self) {
        let fresh = Cpu::reset();
        let old = core::mem::replace(self, fresh);
        self.msr = old.msr;
        self.fpu = old.fpu;
        self.xcr0 = old.xcr0;
        self.cr0.0 = (self.cr0.0 & !(Cr0::CD | Cr0::NW)) | (old.cr0.0 & (Cr0::CD | Cr0::NW));
        self.refresh();
    }

    /// Starts in real mode at `vector` × 4 KiB, as a start-up IPI does (SDM Vol. 3, MP Initialization).
    pub fn start_up(&mut self, vector: u8) {
        let cs = &mut self.segments[Seg::Cs];
        cs.selector = u16::from(vector) << 8;
        cs.base = u64::from(vector) << 12;
        self.rip = 0;
        self.activity = Activity::Running;
        self.refresh();
    }

    /// Current privilege level.
    #[inline(always)]
    pub fn cpl(&self) -> u8 {
        self.view.cpl
    }

    /// Maskable interrupts can be taken at this instruction boundary.
    pub fn accepts_interrupts(&self) -> bool {
        self.flags.interrupt() && self.shadow == Shadow::None && self.event.is_none()
    }

    /// Non-maskable interrupts can be taken at this instruction boundary.
    pub fn accepts_nmi(&self) -> bool {
        !self.nmi_blocked && self.shadow != Shadow::MovSs && self.event.is_none()
    }

    /// A virtual interrupt waits for a program that is ready for it: VIP and VIF are both set where they count. That is #GP(0)
    /// at the beginning of an instruction (SDM Vol. 3, Class 2: Maskable Hardware Interrupt Handling in Virtual-8086 Mode).
    pub(crate) fn has_waiting_interrupt(&self) -> bool {
        let extension = if self.flags.any(flags::VM) { Cr4::VME } else { Cr4::PVI };
        self.flags.any(flags::VIP)
            && self.flags.any(flags::VIF)
            && self.cpl() == 3
            && self.flags.iopl() < 3
            && self.cr4.any(extension)
    }

    /// RIP as it is after an instruction that ends at `next`: truncated to the code size.
    #[inline(always)]
    pub(crate) fn truncate_ip(&self, next: u64) -> u64 {
        next & self.view.ip_mask
    }

    /// Recomputes [`View`] after a change of mode, segments, EFER or control registers.
    pub fn refresh(&mut self) {
        self.view = View::of(self);
    }
}
