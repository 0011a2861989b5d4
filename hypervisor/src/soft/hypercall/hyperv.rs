//! Hyper-V's hypercalls (TLFS, "Hypercall Interface").
//!
//! The control word is in RCX, the input in memory at RDX or, for a fast call, in RDX, R8 and XMM0 to XMM5; the result goes
//! to RAX. A caller outside 64-bit mode uses EDX:EAX, EBX:ECX, EDI:ESI, XMM0 to XMM5, and EDX:EAX.

use reprise_emulator::cpu::gpr;
use reprise_emulator::paging::PHYSICAL_BITS;
use reprise_emulator::{Aside, Cpu};

use super::{Name, VpSet};

/// A call that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Which.
    pub name: Name,
    /// What it does.
    pub deed: Deed,
    /// What it returns when that is done.
    pub result: u64,
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Nothing: the caller spins for a lock, and others had better run.
    Yield,
    /// Forgets translations of these processors. Which is not told: all are forgotten, as is everybody's right.
    Flush(VpSet),
    /// Interrupts these processors.
    Interrupt(VpSet, u8),
}

/// Why a call is refused (TLFS, "Hypercall Status Codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Invalid {
    /// HV_STATUS_INVALID_HYPERCALL_CODE.
    HypercallCode = 2,
    /// HV_STATUS_INVALID_HYPERCALL_INPUT.
    HypercallInput = 3,
    /// HV_STATUS_INVALID_ALIGNMENT.
    Alignment = 4,
    /// HV_STATUS_INVALID_PARAMETER.
    Parameter = 5,
}

const FLUSH_VIRTUAL_ADDRESS_SPACE: u16 = 0x0002;
const FLUSH_VIRTUAL_ADDRESS_LIST: u16 = 0x0003;
const NOTIFY_LONG_SPIN_WAIT: u16 = 0x0008;
const SEND_SYNTHETIC_CLUSTER_IPI: u16 = 0x000b;
const FLUSH_VIRTUAL_ADDRESS_SPACE_EX: u16 = 0x0013;
const FLUSH_VIRTUAL_ADDRESS_LIST_EX: u16 = 0x0014;
const SEND_SYNTHETIC_CLUSTER_IPI_EX: u16 = 0x0015;

/// Bits of the control word that must be zero; bit 31 is for a hypervisor around this one, which there is not.
const CONTROL_RESERVED: u64 = 0x1f << 27 | 0xf << 44 | 0xf << 60;

/// Flags of a flush, of which two more narrow down what is forgotten.
const FLUSH_ALL_PROCESSORS: u64 = 1;
const FLUSH_FLAGS: u64 = 0b1111;

/// Formats of a set of processors.
const SPARSE: u64 = 0;
const ALL: u64 = 1;

/// The words that XMM0 to XMM5 hold, after RDX and R8.
const FAST_WORDS: u64 = 2 + 6 * 2;

/// Whether a processor in this state may make calls at all: in protected mode, at the highest privilege.
pub fn may_call(cpu: &Cpu) -> bool {
    cpu.cpl() == 0 && cpu.view.has_descriptors()
}

/// What the call in the caller's registers is.
///
/// # Errors
/// [`Invalid`] if it is none.
pub fn decode(guest: &Aside<'_>) -> Result<Call, Invalid> {
    let control = Control(registers(guest.cpu())[0]);
    let (name, fixed, sparse, rep) = match control.code() {
        NOTIFY_LONG_SPIN_WAIT => (Name::HvLongSpin, 1, false, false),
        FLUSH_VIRTUAL_ADDRESS_SPACE => (Name::HvFlushSpace, 3, false, false),
        FLUSH_VIRTUAL_ADDRESS_SPACE_EX => (Name::HvFlushSpace, 4, true, false),
        FLUSH_VIRTUAL_ADDRESS_LIST => (Name::HvFlushList, 3, false, true),
        FLUSH_VIRTUAL_ADDRESS_LIST_EX => (Name::HvFlushList, 4, true, true),
        SEND_SYNTHETIC_CLUSTER_IPI => (Name::HvSendIpi, 2, false, false),
        SEND_SYNTHETIC_CLUSTER_IPI_EX => (Name::HvSendIpi, 3, true, false),
        _ => return Err(Invalid::HypercallCode),
    };
    let reps_fit = match rep {
        true => control.rep_start() < control.reps(),
        false => control.rep_start() == 0 && control.reps() == 0,
    };
    if control.0 & CONTROL_RESERVED != 0 || !reps_fit || control.variable_words() != 0 && !sparse {
        return Err(Invalid::HypercallInput);
    }
    let input = Input::find(guest, control, fixed)?;
    let processors = |format: u64, mask| match sparse {
        true => input.processors(format, fixed, control.variable_words()),
        false => Ok(VpSet::of(mask)),
    };
    let deed = match name {
        Name::HvSendIpi => {
            let head = input.word(0)?;
            // The vector, then the trust level to send it in, of which there is one.
            let (vector, level) = (head as u32, head >> 32 & 0xff);
            let set = processors(1, input.word(1)?)?;
            match u8::try_from(vector) {
                Ok(vector @ 0x10..) if level == 0 => Deed::Interrupt(set, vector),
                _ => return Err(Invalid::Parameter),
            }
        }
        Name::HvFlushSpace | Name::HvFlushList => {
            let flags = input.word(1)?;
            if flags & !FLUSH_FLAGS != 0 {
                return Err(Invalid::Parameter);
            }
            Deed::Flush(match flags & FLUSH_ALL_PROCESSORS {
                0 => processors(2, input.word(2)?)?,
                _ => VpSet::ALL,
            })
        }
        _ => Deed::Yield,
    };
    // Repetitions are made all at once, whichever was to be the first.
    let result = control.reps() << 32;
    Ok(Call { name, deed, result })
}

/// The control word of a call (TLFS, "Hypercall Inputs").
#[derive(Debug, Clone, Copy)]
struct Control(u64);

impl Control {
    fn code(self) -> u16 {
        self.0 as u16
    }

    fn is_fast(self) -> bool {
        self.0 & 1 << 16 != 0
    }

    /// How many words follow the fixed part of the input's header.
    fn variable_words(self) -> u64 {
        self.0 >> 17 & 0x3ff
    }

    fn reps(self) -> u64 {
        self.0 >> 32 & 0xfff
    }

    fn rep_start(self) -> u64 {
        self.0 >> 48 & 0xfff
    }
}

/// The number of R8.
const R8: u8 = 8;

/// Control word, input, output.
fn registers(cpu: &Cpu) -> [u64; 3] {
    if cpu.view.is_long() {
        return [gpr::RCX, gpr::RDX, R8].map(|register| cpu.gpr.get(register));
    }
    let pairs = [(gpr::RDX, gpr::RAX), (gpr::RBX, gpr::RCX), (gpr::RDI, gpr::RSI)];
    pairs.map(|(high, low)| cpu.gpr.get(high) << 32 | cpu.gpr.get(low) & 0xffff_ffff)
}

/// The input of a call: words in memory or in registers.
struct Input<'a> {
    guest: &'a Aside<'a>,
    /// Where it is in memory; none for a fast call.
    address: Option<u64>,
}

impl<'a> Input<'a> {
    /// The input of a call whose header has `fixed` words before those that the control word counts.
    fn find(guest: &'a Aside<'a>, control: Control, fixed: u64) -> Result<Self, Invalid> {
        let words = fixed + control.variable_words() + control.reps();
        if control.is_fast() {
            let fits = words <= FAST_WORDS;
            return fits
                .then_some(Self { guest, address: None })
                .ok_or(Invalid::HypercallInput);
        }
        let [_, address, _] = registers(guest.cpu());
        if address % 8 != 0 || address >> PHYSICAL_BITS != 0 || address % 4096 + words * 8 > 4096 {
            return Err(Invalid::Alignment);
        }
        let address = Some(address);
        Ok(Self { guest, address })
    }

    /// Word `index`, which must be one of the input's. Where there is no memory Hyper-V would tell a parent partition; there
    /// is none, and the call is refused.
    fn word(&self, index: u64) -> Result<u64, Invalid> {
        let Some(address) = self.address else {
            return Ok(fast_word(self.guest.cpu(), index));
        };
        let mut bytes = [0; 8];
        match self.guest.read(address + 8 * index, &mut bytes) {
            true => Ok(u64::from_le_bytes(bytes)),
            false => Err(Invalid::HypercallInput),
        }
    }

    /// The set of processors whose format is in word `place`, its `banks` being from word `first_bank` on.
    fn processors(&self, place: u64, first_bank: u64, banks: u64) -> Result<VpSet, Invalid> {
        let (format, valid) = (self.word(place)?, self.word(place + 1)?);
        match format {
            ALL => return Ok(VpSet::ALL),
            SPARSE => {}
            _ => return Err(Invalid::Parameter),
        }
        if u64::from(valid.count_ones()) != banks {
            return Err(Invalid::HypercallInput);
        }
        let mut set = VpSet::default();
        let numbers = (0..64).filter(|bank| valid >> bank & 1 != 0);
        for (bank, word) in numbers.zip(first_bank..) {
            set.add_bank(bank, self.word(word)?);
        }
        Ok(set)
    }
}

/// Word `index` of a fast call's input, 0 to 13.
fn fast_word(cpu: &Cpu, index: u64) -> u64 {
    let [_, first, second] = registers(cpu);
    match index {
        0 => first,
        1 => second,
        _ => cpu.fpu.vectors[((index as usize - 2) / 2) & 31][index as usize % 2],
    }
}
