//! One case: an instruction, and a state in which it is interesting.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};

use crate::dice::{Dice, Taste};
use crate::emulated::TF;
use crate::encode::encode;
use crate::form::{self, Form, Forms};
use crate::place::{Places, address, place, target};
use crate::quirk::{LeftOut, MXCSR_MASK_OFFSET, Mask, mask, stores_mxcsr_mask};
use crate::sandbox::code_base;
use crate::state::{
    CODE, CODE_PAGES, CS16, CS32, CS64, DATA, DATA16, FLAT, Input, LDT, NO_VECTOR, PAGE, PATCHES, Patch, STACK, State,
    WRITABLE, XSAVE_SIZE, Xsave,
};

/// The emulator's own: see its `decode` module.
pub const OPTIONS: u32 = DecoderOptions::AMD
    | DecoderOptions::FORCE_RESERVED_NOP
    | DecoderOptions::NO_MPFX_0FBC
    | DecoderOptions::NO_MPFX_0FBD;

/// OF, SF, ZF, AF, PF, CF and DF.
const COMMON_FLAGS: u64 = 0xcd5;

/// What lies where MXCSR_MASK goes.
const UNLIKE_MXCSR_MASK: u8 = 0x55;

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Registers, code and memory.
    pub input: Input,
    /// 64, 32 or 16.
    pub bits: u32,
    /// Index in [`Forms::families`].
    pub family: usize,
    /// What is not compared.
    pub mask: Mask,
    /// The fast way can be compared with the processor too: TF changes nothing but that the case ends.
    pub is_single: bool,
}

/// Makes cases.
pub struct Maker<'a> {
    /// What is to be executed.
    pub forms: &'a Forms,
    /// What came up and is not run.
    pub left_out: LeftOut,
}

impl Maker<'_> {
    /// A random case of a random form.
    pub fn make(&mut self, dice: &mut Dice) -> Case {
        loop {
            let bits = code_size(dice);
            let list = self.forms.of(bits);
            if list.is_empty() {
                continue;
            }
            let form = dice.pick(list);
            if let Some(case) = self.try_form(dice, form, bits) {
                return case;
            }
        }
    }

    /// A case of `form`, or of what its damaged bytes are; nothing if that must not be run.
    fn try_form(&mut self, dice: &mut Dice, form: Form, bits: u32) -> Option<Case> {
        let bytes = encode(dice, form.code, bits).bytes;
        let rip = code_address(dice);
        let (instruction, mut code, length) = decode(&bytes, rip, bits)?;
        let is_wanted = instruction.code() == form.code;
        // Whatever else the bytes may be is welcome, but not too often.
        if !is_wanted && !dice.percent(5) {
            return None;
        }
        if self.left_out.takes(&code[..length]) || !is_wanted && !self.can_run(&instruction) {
            return None;
        }
        let mut state = state(dice, rip, bits);
        let offsets = Decoder::with_ip(bits, &bytes, rip, OPTIONS).get_constant_offsets(&instruction);
        let taste = dice.taste();
        fill_vectors(dice, taste, &mut state.xsave);
        adjust(dice, &instruction, &mut state, bits);
        let places = if instruction.is_invalid() {
            Places::default()
        } else {
            place(dice, &instruction, &offsets, &mut code, &mut state, bits)
        };
        let (instruction, code, length) = decode(&code, rip, bits).unwrap_or((instruction, code, length));
        let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let is_string = instruction.is_string_instruction();
        if is_string && repeats {
            state.gpr[1] = if dice.percent(90) {
                dice.below(40)
            } else {
                dice.integer()
            };
        }
        let steps = !(is_string && repeats && dice.percent(70));
        if steps {
            state.flags |= TF;
        } else {
            state.flags &= !TF;
        }
        let operand = (0..instruction.op_count()).find_map(|i| address(&instruction, i, 0, &state, bits));
        let mxcsr_mask = operand
            .filter(|_| stores_mxcsr_mask(&instruction))
            .map(|operand| operand.wrapping_add(MXCSR_MASK_OFFSET));
        let input = Input {
            state,
            code,
            length: length as u64,
            patches: patches(dice, &instruction, taste, &places, mxcsr_mask, &state),
        };
        let is_single = steps && !(is_string && repeats) && !sees_tf(&instruction);
        Some(Case {
            input,
            bits,
            family: form.family,
            mask: mask(&instruction, mxcsr_mask),
            is_single,
        })
    }

    fn can_run(&self, instruction: &Instruction) -> bool {
        if form::excluded(instruction.mnemonic()).is_some() {
            return false;
        }
        // What only one of both has is no difference, and neither has what no decoder knows.
        let code = instruction.code();
        let is_compared = |forms: &[Form]| forms.iter().any(|form| form.code == code);
        instruction.is_invalid() || is_compared(&self.forms.long) || is_compared(&self.forms.narrow)
    }
}

/// Bits of the code: 64 mostly.
pub fn code_size(dice: &mut Dice) -> u32 {
    match dice.below(16) {
        0..=9 => 64,
        10..=13 => 32,
        _ => 16,
    }
}

/// The case is over with INT3 or the like, so that TF is seen by it or by nothing.
fn sees_tf(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        instruction.mnemonic(),
        Pushf | Pushfd | Pushfq | Popf | Popfd | Popfq | Iret | Iretd | Iretq
    ) || instruction.mnemonic() == Mov && instruction.op0_register() == iced_x86::Register::SS
        || instruction.mnemonic() == Pop && instruction.op0_register() == iced_x86::Register::SS
        || instruction.mnemonic() == Lss
        || instruction.flow_control() == FlowControl::Interrupt
}

/// Decodes the first instruction; gives its bytes and length. Bytes that are no instruction keep all 15.
pub fn decode(bytes: &[u8], rip: u64, bits: u32) -> Option<(Instruction, [u8; 16], usize)> {
    let mut decoder = Decoder::with_ip(bits, &bytes[..bytes.len().min(15)], rip, OPTIONS);
    let instruction = decoder.decode();
    let length = if instruction.is_invalid() {
        15
    } else {
        instruction.len()
    };
    let mut code = [0; 16];
    code[..length].copy_from_slice(bytes.get(..length)?);
    Some((instruction, code, length))
}

/// Where the instruction is: anywhere, or at the end of a page.
fn code_address(dice: &mut Dice) -> u64 {
    let end = CODE + (CODE_PAGES * PAGE) as u64;
    match dice.below(16) {
        0 => end - dice.below(16) - 1,
        1 => CODE + PAGE as u64 - dice.below(16),
        _ => CODE + dice.below((CODE_PAGES * PAGE) as u64 - 32),
    }
}

/// Random registers; the instruction is at linear address `rip`.
pub fn state(dice: &mut Dice, rip: u64, bits: u32) -> State {
    let mut gpr: [u64; 16] = core::array::from_fn(|_| dice.integer());
    gpr[4] = match dice.below(16) {
        0 => dice.integer(),
        1 => STACK + dice.below(PAGE as u64),
        2 => STACK + PAGE as u64 - dice.below(32),
        3 => STACK + dice.below(32),
        _ => STACK + 8 * (64 + dice.below(384)),
    };
    if dice.percent(50) {
        gpr[5] = STACK + 8 * (64 + dice.below(384));
    }
    let long = bits == 64;
    let selectors = match bits {
        64 => [FLAT, CS64, FLAT, FLAT, 0, 0],
        32 => [FLAT, CS32, FLAT, FLAT, 7, 0xf],
        // 16-bit addresses reach only what a segment brings near.
        _ => [DATA16, CS16, FLAT, DATA16, 7, 0xf],
    };
    let mut base = || {
        if !long {
            return u64::from(LDT[0].base);
        }
        match dice.below(4) {
            0 => 0,
            1 => DATA,
            2 => DATA + dice.below(4096),
            _ => (dice.integer() as i64 >> 17) as u64,
        }
    };
    let (fs_base, gs_base) = (base(), base());
    let mut flags = dice.next() & COMMON_FLAGS | 0x202;
    // DF is rare in practice, NT and ID mean nothing, AC checks alignment.
    for (flag, percent) in [(1 << 10, 30), (1 << 14, 10), (1 << 21, 10), (1 << 18, 3)] {
        flags = flags & !flag | (u64::from(dice.percent(percent)) * flag);
    }
    if !long {
        for (i, register) in gpr.iter_mut().enumerate() {
            *register = if i < 8 { *register & 0xffff_ffff } else { *register };
        }
    }
    State {
        xsave: floating(dice),
        gpr,
        rip: rip - code_base(selectors[1]),
        flags,
        fs_base,
        gs_base,
        selectors,
        padding: [0; 2],
    }
}

/// Control and status of x87 and SSE, and the stack's registers.
fn floating(dice: &mut Dice) -> Xsave {
    let mut xsave = Xsave([0; XSAVE_SIZE]);
    let control = match dice.below(4) {
        0 => 0x37f,
        1 | 2 => 0x7f | (dice.next() as u16 & 0x1f00),
        _ => dice.next() as u16 & 0x1f3f | 0x40,
    };
    let mut status = dice.next() as u16 & 0x7f00;
    if dice.percent(30) {
        status |= dice.next() as u16 & 0x7f;
    }
    // ES follows from flags and masks. What is pending is all that most instructions see, so it is rare.
    if dice.percent(70) {
        status &= control & 0x3f | 0x7f40;
    }
    if status & !control & 0x3f != 0 {
        status |= 0x8080;
    }
    let tags = match dice.below(4) {
        0 | 1 => 0xff,
        2 => 0,
        _ => dice.next() as u8,
    };
    xsave.set(0, &control.to_le_bytes());
    xsave.set(2, &status.to_le_bytes());
    xsave.set(4, &[tags]);
    xsave.set(6, &(dice.next() as u16 & 0x7ff).to_le_bytes());
    xsave.set(8, &(dice.next() >> 17).to_le_bytes());
    xsave.set(16, &(dice.next() >> 17).to_le_bytes());
    let mxcsr = match dice.below(4) {
        0 => 0x1f80,
        1 | 2 => 0x1f80 | (dice.next() as u32 & 0xe07f),
        _ => dice.next() as u32 & 0xffff,
    };
    xsave.set(24, &mxcsr.to_le_bytes());
    for i in 0..8 {
        let (exponent, significand) = dice.extended();
        xsave.set(32 + 16 * i, &significand.to_le_bytes());
        xsave.set(40 + 16 * i, &exponent.to_le_bytes());
    }
    // XSTATE_BV: everything is there.
    xsave.set(512, &7u64.to_le_bytes());
    xsave
}

/// Random vectors.
pub fn fill_vectors(dice: &mut Dice, taste: Taste, xsave: &mut Xsave) {
    for i in 0..16 {
        let mut vector = [0; 32];
        for word in vector.chunks_exact_mut(8) {
            word.copy_from_slice(&dice.element(taste).to_le_bytes());
        }
        xsave.set_vector(i, vector);
    }
}

/// Values without which an instruction would do the same thing each time.
fn adjust(dice: &mut Dice, instruction: &Instruction, state: &mut State, bits: u32) {
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    match mnemonic {
        // Bit offsets that do not lead far away.
        Bt | Bts | Btr | Btc if instruction.op1_kind() == iced_x86::OpKind::Register && dice.percent(80) => {
            let slot = &mut state.gpr[instruction.op1_register().full_register().number() & 15];
            let sign = if dice.percent(50) { 0 } else { !0 };
            *slot = (dice.below(400) ^ sign) & if bits == 64 { u64::MAX } else { 0xffff_ffff };
        }
        // Quotients that fit.
        Div | Idiv if dice.percent(80) => {
            state.gpr[2] = if mnemonic == Idiv && dice.percent(50) {
                u64::MAX
            } else {
                dice.below(4)
            };
            if bits != 64 {
                state.gpr[2] &= 0xffff_ffff;
            }
            if dice.percent(50) {
                state.gpr[0] &= 0xffff_ffff_ffff_0fff;
            }
        }
        Xgetbv => state.gpr[1] = dice.below(3),
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xsaves | Xsaves64 | Xrstor | Xrstor64 => {
            state.gpr[0] = if dice.percent(80) { dice.below(8) } else { state.gpr[0] };
        }
        Jmp | Call if instruction.op0_kind() == iced_x86::OpKind::Register && dice.percent(80) => {
            let at = CODE + dice.below((CODE_PAGES * PAGE) as u64);
            state.gpr[instruction.op0_register().full_register().number() & 15] = at;
        }
        Lar | Lsl | Verr | Verw | Arpl | Mov => {
            for i in 0..2 {
                let register = instruction.op_register(i);
                let is_selector = mnemonic != Mov || instruction.op0_register().is_segment_register();
                if is_selector && register.is_gpr() && i < instruction.op_count() {
                    let slot = &mut state.gpr[register.full_register().number() & 15];
                    *slot = *slot & !0xffff | u64::from(selector(dice));
                }
            }
        }
        _ => {}
    }
    let stack_moves = instruction.is_stack_instruction() && bits == 64;
    if stack_moves && dice.percent(2) {
        state.gpr[4] = target(dice);
    }
}

/// A selector: of anything in the tables, or of nothing.
fn selector(dice: &mut Dice) -> u16 {
    match dice.below(8) {
        0 => dice.next() as u16,
        1 => dice.below(4) as u16,
        2 => dice.pick(&[CS32, CS64, FLAT]),
        3 | 4 => dice.below(128) as u16,
        _ => 4 | dice.below(64) as u16 | (3 * dice.below(2) as u16),
    }
}

/// What memory operands contain. At `mxcsr_mask` MXCSR_MASK may be stored, and it must be seen whether it was.
fn patches(
    dice: &mut Dice,
    instruction: &Instruction,
    taste: Taste,
    places: &Places,
    mxcsr_mask: Option<u64>,
    state: &State,
) -> [Patch; PATCHES] {
    let none = Patch {
        page: 0,
        length: 0,
        at: 0,
        bytes: [0; 72],
    };
    let mut patches = [none; PATCHES];
    let operands = places.at[..places.count].iter().copied();
    let all = operands.chain([state.gpr[4]]).chain(mxcsr_mask);
    for (patch, address) in patches.iter_mut().zip(all) {
        let Some(page) = WRITABLE
            .iter()
            .position(|page| (*page..page + PAGE as u64).contains(&address))
        else {
            continue;
        };
        let at = address % PAGE as u64;
        let is_mask = mxcsr_mask == Some(address);
        *patch = Patch {
            page: page as u8,
            length: (PAGE as u64 - at).min(if is_mask { 4 } else { 72 }) as u8,
            at: at as u16,
            bytes: match is_mask {
                true => [UNLIKE_MXCSR_MASK; 72],
                false => contents(dice, instruction, taste),
            },
        };
    }
    patches
}

/// The contents of an operand.
fn contents(dice: &mut Dice, instruction: &Instruction, taste: Taste) -> [u8; 72] {
    let mut bytes = [0; 72];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&dice.element(taste).to_le_bytes());
    }
    let is_x87 = matches!(form::family(instruction.code()).as_str(), "x87" | "xsave");
    if is_x87 {
        for number in bytes.chunks_exact_mut(10) {
            let (exponent, significand) = dice.extended();
            number[..8].copy_from_slice(&significand.to_le_bytes());
            number[8..].copy_from_slice(&exponent.to_le_bytes());
        }
    }
    if is_x87 && dice.percent(30) {
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&dice.element(taste).to_le_bytes());
        }
    }
    use Mnemonic::*;
    match instruction.mnemonic() {
        Ldmxcsr | Vldmxcsr if dice.percent(80) => bytes[2..4].fill(0),
        Fbld => {
            for digits in &mut bytes[..9] {
                *digits = (dice.below(10) << 4 | dice.below(10)) as u8;
            }
        }
        Call | Jmp | Ret if dice.percent(70) => {
            let to = CODE + dice.below((CODE_PAGES * PAGE) as u64);
            bytes[..8].copy_from_slice(&to.to_le_bytes());
            if instruction.flow_control() != FlowControl::Next && dice.percent(30) {
                let selector = selector(dice);
                bytes[4..6].copy_from_slice(&selector.to_le_bytes());
            }
        }
        Retf | Iret | Iretd | Iretq if dice.percent(80) => far_frame(dice, instruction, &mut bytes),
        Lar | Lsl | Verr | Verw | Mov | Pop | Arpl => bytes[..2].copy_from_slice(&selector(dice).to_le_bytes()),
        Lds | Les | Lfs | Lgs | Lss => {
            for at in [2, 4, 8] {
                bytes[at..at + 2].copy_from_slice(&selector(dice).to_le_bytes());
            }
        }
        _ => {}
    }
    bytes
}

/// RIP, CS, RFLAGS, RSP and SS, of whatever width.
fn far_frame(dice: &mut Dice, instruction: &Instruction, bytes: &mut [u8; 72]) {
    let width = match instruction.code() {
        Code::Retfw | Code::Retfw_imm16 | Code::Iretw => 2,
        Code::Retfd | Code::Retfd_imm16 | Code::Iretd => 4,
        _ => 8,
    };
    let is_interrupt = instruction.mnemonic() != Mnemonic::Retf;
    let cs = if dice.percent(80) {
        dice.pick(&[CS32, CS64])
    } else {
        selector(dice)
    };
    let mut frame = vec![CODE + dice.below(PAGE as u64), u64::from(cs)];
    if is_interrupt {
        frame.push(dice.next() & 0x3f_7fd7);
    }
    frame.extend([STACK + dice.below(PAGE as u64), u64::from(FLAT)]);
    for (slot, value) in bytes.chunks_exact_mut(width).zip(frame) {
        slot.copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

/// The flags that the manuals leave undefined after `instruction`.
pub fn undefined_flags(instruction: &Instruction) -> u64 {
    use iced_x86::RflagsBits;
    let undefined = instruction.rflags_undefined();
    [
        (RflagsBits::OF, 1 << 11),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 1 << 2),
    ]
    .into_iter()
    .filter(|(bit, _)| undefined & bit != 0)
    .fold(0, |flags, (_, flag)| flags | flag)
}

const _: () = assert!(NO_VECTOR > 0xff);
