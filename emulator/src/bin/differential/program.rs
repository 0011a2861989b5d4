//! A little program: blocks, loops, calls and jumps of all kinds around random instructions, which ends on its own.
//!
//! # Roles of registers
//! Three registers *point* to data and one is *small*, so that operands are somewhere; one *counts* down. Which ones they are
//! differs from program to program; random instructions leave them alone. RSP is for the stack's instructions.
//!
//! # Invariant
//! Whatever leads back (a loop, a return) counts down first, and the program is over when that gives a negative number. So it ends
//! on the processor too, with the INT3 behind it, a fault, or a step.

use iced_x86::{
    Code, Decoder, Encoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpCodeOperandKind,
    OpKind, Register,
};

use crate::case::{OPTIONS, decode};
use crate::compare::hex;
use crate::dice::Dice;
use crate::encode::encode;
use crate::form::{Forms, excluded};
use crate::quirk::{mask, stores_mxcsr_mask};
use crate::report::disassemble;
use crate::state::{CODE, CODE_PAGES, DATA, FILLER, PAGE, READ_ONLY, STACK};

/// Both pages of code.
pub type Image = [u8; CODE_PAGES * PAGE];

/// Addresses at which something is wrong, for accesses of up to 64 bytes.
const WRONG: [u64; 9] = [
    0x5000_0000,
    READ_ONLY + 0x100,
    READ_ONLY - 3,
    READ_ONLY + PAGE as u64 - 1,
    STACK + PAGE as u64 - 5,
    CODE,
    0x8000_0000_0000_0000,
    0x7fff_ffff_effd,
    0xffff_8000_0000_0000,
];

/// Which register does what.
#[derive(Debug, Clone, Copy)]
pub struct Roles {
    /// They point to data.
    pub pointers: [Register; 3],
    /// It holds a number below 64.
    pub small: Register,
    /// It counts what leads back.
    pub counter: Register,
}

impl Roles {
    fn random(dice: &mut Dice) -> Roles {
        let mut registers: Vec<Register> = (0..16)
            .filter(|number| *number != 4)
            .map(|number| Register::RAX + number)
            .collect();
        for i in 0..registers.len() {
            let other = dice.below(registers.len() as u64) as usize;
            registers.swap(i, other);
        }
        if dice.percent(50) {
            // String instructions find something, too.
            for (place, register) in [Register::RSI, Register::RDI].into_iter().enumerate() {
                let now = registers.iter().position(|own| *own == register).unwrap_or(place);
                registers.swap(place, now);
            }
        }
        Roles {
            pointers: [registers[0], registers[1], registers[2]],
            small: registers[3],
            counter: registers[4],
        }
    }

    fn are_written_by(&self, instruction: &Instruction, factory: &mut InstructionInfoFactory) -> bool {
        let moves = instruction.is_string_instruction();
        factory.info(instruction).used_registers().iter().any(|used| {
            let writes = !matches!(
                used.access(),
                OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            );
            let register = used.register().full_register();
            let is_reserved = register == self.small
                || register == self.counter
                || self.pointers.contains(&register) && !moves
                || register == Register::RSP && !instruction.is_stack_instruction();
            writes && is_reserved
        })
    }
}

/// One instruction of a program.
#[derive(Debug, Clone, Copy)]
struct Op {
    instruction: Instruction,
    /// Number of the instruction that it leads to, or whose address it takes.
    to: Option<usize>,
    /// The program need not end without it.
    is_needed: bool,
    /// Nothing leads here but the instruction before it.
    is_joined: bool,
    /// What its memory operand hangs on.
    pointer: Option<Register>,
}

/// A program.
#[derive(Clone)]
pub struct Program {
    /// Its registers.
    pub roles: Roles,
    ops: Vec<Op>,
    /// Where the functions begin among them.
    functions: usize,
    /// Offsets of both parts in the code pages.
    at: [usize; 2],
}

/// Makes programs.
pub struct Writer<'a> {
    forms: &'a Forms,
    factory: InstructionInfoFactory,
    encoder: Encoder,
}

impl Writer<'_> {
    /// One that writes instructions of `forms`.
    pub fn new(forms: &Forms) -> Writer<'_> {
        Writer {
            forms,
            factory: InstructionInfoFactory::new(),
            encoder: Encoder::new(64),
        }
    }

    /// A random program.
    pub fn write(&mut self, dice: &mut Dice) -> Program {
        let roles = Roles::random(dice);
        let mut program = Program {
            roles,
            ops: Vec::new(),
            functions: 0,
            at: [0, PAGE + 1024 + dice.below(64) as usize],
        };
        // In one page, or across both.
        program.at[0] = match dice.below(3) {
            0 => PAGE - dice.below(400) as usize,
            _ => dice.below(64) as usize,
        };
        let length = 4 + dice.below(24) as usize;
        let calls = dice.percent(50);
        while program.ops.len() < length {
            self.write_piece(dice, &mut program, calls);
        }
        program.functions = program.ops.len();
        if calls {
            for _ in 0..1 + dice.below(4) {
                program.push(self.plain(dice, &roles));
            }
            program.guard(dice);
            let returns = match dice.below(3) {
                0 => Instruction::with1(Code::Retnq_imm16, 0u32).unwrap_or_else(|_| Instruction::with(Code::Retnq)),
                _ => Instruction::with(Code::Retnq),
            };
            program.push(Op {
                is_joined: true,
                ..Op::of(returns)
            });
        }
        program.settle();
        program
    }

    fn write_piece(&mut self, dice: &mut Dice, program: &mut Program, calls: bool) {
        let here = program.ops.len();
        let roles = program.roles;
        match dice.below(16) {
            0 | 1 => {
                // A conditional jump forward, over a few.
                let code = dice.pick(&CONDITIONS);
                program.push(Op::to(branch(code), here + 2 + dice.below(5) as usize));
            }
            2 => {
                let code = dice.pick(&[
                    Code::Jrcxz_rel8_64,
                    Code::Jecxz_rel8_64,
                    Code::Loop_rel8_64_RCX,
                    Code::Loopne_rel8_64_RCX,
                ]);
                program.push(Op::to(branch(code), here + 2 + dice.below(3) as usize));
            }
            3 => program.push(Op::to(branch(Code::Jmp_rel32_64), here + 1 + dice.below(3) as usize)),
            4 | 5 if here > 0 => {
                // Back, as long as the counter allows.
                let to = here - 1 - dice.below((here as u64).min(12)) as usize;
                program.guard(dice);
                let code = dice.pick(&[
                    Code::Jmp_rel32_64,
                    Code::Jmp_rel32_64,
                    Code::Jne_rel32_64,
                    Code::Jno_rel32_64,
                ]);
                program.push(Op {
                    is_joined: true,
                    ..Op::to(branch(code), to)
                });
            }
            6 => {
                // Through a register, or a return.
                let register = dice.pick(&FREE).full_register();
                if [roles.small, roles.counter].contains(&register) || roles.pointers.contains(&register) {
                    return;
                }
                let is_call = calls && dice.percent(50);
                let to = if is_call {
                    CALLED
                } else {
                    here + 3 + dice.below(4) as usize
                };
                let address = iced_x86::MemoryOperand::with_base_displ(Register::RIP, 0);
                let Ok(lea) = Instruction::with2(Code::Lea_r64_m, register, address) else {
                    return;
                };
                program.push(Op {
                    is_needed: true,
                    ..Op::to(lea, to)
                });
                let code = if is_call { Code::Call_rm64 } else { Code::Jmp_rm64 };
                if let Ok(jump) = Instruction::with1(code, register) {
                    program.push(Op {
                        is_needed: true,
                        is_joined: true,
                        ..Op::of(jump)
                    });
                }
            }
            7 if calls => program.push(Op::to(branch(Code::Call_rel32_64), CALLED)),
            8 => {
                // On through the data.
                let pointer = dice.pick(&roles.pointers);
                let by = dice.pick(&[8, 16, 64, 48, -16, 512]);
                let address = iced_x86::MemoryOperand::with_base_displ(pointer, by);
                if let Ok(lea) = Instruction::with2(Code::Lea_r64_m, pointer, address) {
                    program.push(Op::of(lea));
                }
            }
            _ => program.push(self.plain(dice, &roles)),
        }
    }

    /// A random instruction that goes on to the next and is likely not to fault.
    fn plain(&mut self, dice: &mut Dice, roles: &Roles) -> Op {
        loop {
            if let Some(op) = self.try_plain(dice, roles) {
                return op;
            }
        }
    }

    fn try_plain(&mut self, dice: &mut Dice, roles: &Roles) -> Option<Op> {
        let form = dice.pick(&self.forms.long);
        let (mut instruction, ..) = decode(&encode(dice, form.code, 64).bytes, CODE, 64)?;
        if instruction.code() != form.code || !is_chosen(dice, &instruction) {
            return None;
        }
        let pointer = point(dice, roles, &mut instruction);
        if roles.are_written_by(&instruction, &mut self.factory) {
            return None;
        }
        // As it is when it is read again.
        self.encoder.encode(&instruction, CODE).ok()?;
        let bytes = self.encoder.take_buffer();
        let again = Decoder::with_ip(64, &bytes, CODE, OPTIONS).decode();
        (again.code() == form.code && !again.is_invalid()).then_some(Op {
            pointer,
            ..Op::of(instruction)
        })
    }

    /// The program as it lies in memory; `None` if it does not fit.
    pub fn assemble(&mut self, program: &Program) -> Option<Box<Image>> {
        let mut image = Box::new([FILLER; CODE_PAGES * PAGE]);
        let mut starts = Vec::with_capacity(program.ops.len() + 1);
        // Lengths do not depend on where anything is.
        for pass in 0..2 {
            let mut at = program.at[0];
            for (number, op) in program.ops.iter().enumerate() {
                if number == program.functions {
                    // Room for the INT3 that ends the main part.
                    if at >= program.at[1] {
                        return None;
                    }
                    at = program.at[1];
                }
                let address = CODE + at as u64;
                if pass == 0 {
                    starts.push(address);
                }
                let mut instruction = op.instruction;
                if let Some(to) = op.to {
                    let target = match pass {
                        0 => address,
                        _ => program.address(to, &starts),
                    };
                    if instruction.memory_base() == Register::RIP {
                        instruction.set_memory_displacement64(target);
                    } else {
                        instruction.set_near_branch64(target);
                    }
                }
                let length = self.encoder.encode(&instruction, address).ok()?;
                let bytes = self.encoder.take_buffer();
                image.get_mut(at..at + length)?.copy_from_slice(&bytes);
                at += length;
                if number + 1 == program.functions {
                    starts.push(CODE + at as u64);
                }
            }
            if pass == 0 {
                image.fill(FILLER);
            }
        }
        Some(image)
    }
}

impl Writer<'_> {
    /// The program as text.
    pub fn listing(&mut self, program: &Program) -> String {
        let mut text = String::new();
        let Some(image) = self.assemble(program) else {
            return text;
        };
        for (part, end) in [(0, program.functions), (1, program.ops.len())] {
            let mut at = program.at[part];
            let first = if part == 0 { 0 } else { program.functions };
            for _ in first..end {
                let mut decoder = Decoder::with_ip(64, &image[at..], CODE + at as u64, OPTIONS);
                let instruction = decoder.decode();
                let bytes = hex(&image[at..at + instruction.len()]);
                text.push_str(&format!(
                    "    {:#x}: {bytes} ; {}\n",
                    CODE + at as u64,
                    disassemble(&instruction)
                ));
                at += instruction.len();
            }
        }
        text
    }

    /// The last instruction of a program's main part that is no jump.
    pub fn last(&self, program: &Program) -> String {
        let plain = |op: &&Op| op.to.is_none() && !op.is_needed;
        let last = program.ops[..program.functions].iter().rfind(plain);
        last.map_or("nothing".to_owned(), |op| format!("{:?}", op.instruction.code()))
    }
}

/// The function, before it is known where that is.
const CALLED: usize = usize::MAX;

const CONDITIONS: [Code; 16] = [
    Code::Jo_rel32_64,
    Code::Jno_rel32_64,
    Code::Jb_rel32_64,
    Code::Jae_rel32_64,
    Code::Je_rel32_64,
    Code::Jne_rel32_64,
    Code::Jbe_rel32_64,
    Code::Ja_rel32_64,
    Code::Js_rel32_64,
    Code::Jns_rel32_64,
    Code::Jp_rel32_64,
    Code::Jnp_rel32_64,
    Code::Jl_rel32_64,
    Code::Jge_rel32_64,
    Code::Jle_rel32_64,
    Code::Jg_rel32_64,
];

const FREE: [Register; 4] = [Register::RAX, Register::RDX, Register::R9, Register::R14];

impl Op {
    fn of(instruction: Instruction) -> Op {
        Op {
            instruction,
            to: None,
            is_needed: false,
            is_joined: false,
            pointer: None,
        }
    }

    fn to(instruction: Instruction, to: usize) -> Op {
        Op {
            to: Some(to),
            ..Op::of(instruction)
        }
    }
}

fn branch(code: Code) -> Instruction {
    // The target is that of the program.
    Instruction::with_branch(code, CODE).unwrap_or_default()
}

impl Program {
    fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Counts down; the program is over if nothing is left.
    fn guard(&mut self, dice: &mut Dice) {
        let narrow = Register::EAX + self.roles.counter.number() as i32;
        let (code, register) = match dice.percent(50) {
            true => (Code::Dec_rm32, narrow),
            false => (Code::Dec_rm64, self.roles.counter),
        };
        if let Ok(counts) = Instruction::with1(code, register) {
            self.push(Op {
                is_needed: true,
                ..Op::of(counts)
            });
        }
        self.push(Op {
            is_needed: true,
            is_joined: true,
            ..Op::to(branch(Code::Js_rel32_64), END)
        });
    }

    /// Has all that leads somewhere lead to what is there.
    fn settle(&mut self) {
        for number in 0..self.ops.len() {
            let to = match self.ops[number].to {
                Some(CALLED) => self.functions,
                Some(to) if to < self.functions => (0..=to).rfind(|to| !self.ops[*to].is_joined).unwrap_or(0),
                // What ends the main part ends all.
                Some(_) => END,
                None => continue,
            };
            self.ops[number].to = Some(to);
        }
    }

    /// Where execution begins.
    pub fn start(&self) -> u64 {
        CODE + self.at[0] as u64
    }

    /// The address of an instruction, or of the INT3 behind the main part. `starts` has one entry for that, too.
    fn address(&self, number: usize, starts: &[u64]) -> u64 {
        let end = self.functions;
        let place = match number {
            END => end,
            number if number < end => number,
            number => number + 1,
        };
        starts[place]
    }

    /// The instructions with a memory operand that can be led astray.
    pub fn accesses(&self) -> Vec<usize> {
        (0..self.ops.len())
            .filter(|number| self.ops[*number].pointer.is_some())
            .collect()
    }

    /// The same program, but that what instruction `number` accesses is at a wrong place.
    pub fn gone_astray(&self, dice: &mut Dice, number: usize) -> Program {
        let mut program = self.clone();
        let Some(pointer) = self.ops[number].pointer else {
            return program;
        };
        let wrong = dice.pick(&WRONG);
        if let Ok(load) = Instruction::with2(Code::Mov_r64_imm64, pointer, wrong) {
            program.insert(number, Op::of(load));
        }
        program
    }

    fn insert(&mut self, number: usize, op: Op) {
        // What led there leads to what was inserted.
        for op in &mut self.ops {
            op.to = op.to.map(|to| match to {
                END => END,
                to if to > number => to + 1,
                to => to,
            });
        }
        if number < self.functions {
            self.functions += 1;
        }
        self.ops.insert(number, op);
    }

    /// The same program without one instruction; `None` if it is needed.
    pub fn without(&self, number: usize) -> Option<Program> {
        if self.ops.get(number)?.is_needed || number == 0 && self.functions == 1 {
            return None;
        }
        let mut program = self.clone();
        program.ops.remove(number);
        for op in &mut program.ops {
            op.to = op.to.map(|to| match to {
                END => END,
                to if to > number => to - 1,
                to => to,
            });
        }
        if number < program.functions {
            program.functions -= 1;
        }
        Some(program)
    }

    /// The number of instructions.
    pub fn len(&self) -> usize {
        self.ops.len()
    }
}

/// The INT3 that ends the program.
const END: usize = usize::MAX - 1;

/// What a program is made of, and mostly does not fault.
fn is_chosen(dice: &mut Dice, instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let info = instruction.code().op_code();
    let own = mask(instruction, None);
    if excluded(instruction.mnemonic()).is_some()
        || instruction.is_invalid()
        || instruction.flow_control() != FlowControl::Next
        || own.flags != 0
        || own.memory_after_fault
        || own.registers_after_fault
        || own.x87_after_fault
        || stores_mxcsr_mask(instruction)
    {
        return false;
    }
    let rare = match instruction.mnemonic() {
        // A bit of MXCSR that only this processor has would be seen later only. What loads RSP or MXCSR is no less tested.
        Ldmxcsr | Vldmxcsr | Fxrstor | Fxrstor64 | Xrstor | Xrstor64 | Xrstors | Xrstors64 => return false,
        Fldenv | Frstor | Fsave | Fstenv => return false,
        Div | Idiv | Popf | Popfd | Popfq | Maskmovq | Maskmovdqu | Vmaskmovdqu | Leave | Enter => 15,
        Cli | Sti => 2,
        Mov | Pop | Push | Lss | Lfs | Lgs
            if (0..instruction.op_count()).any(|i| instruction.op_register(i).is_segment_register()) =>
        {
            10
        }
        Lss | Lfs | Lgs => 5,
        _ if info.is_privileged() || info.must_be_cpl0() || info.is_input_output() => 1,
        _ if instruction.is_vsib() => 5,
        _ if instruction.is_string_instruction() => 30,
        _ => 100,
    };
    dice.percent(rare)
}

/// Gives the instruction a memory operand where something is; what it hangs on.
fn point(dice: &mut Dice, roles: &Roles, instruction: &mut Instruction) -> Option<Register> {
    use Mnemonic::*;
    let operand = (0..instruction.op_count()).find(|i| instruction.op_kind(*i) == OpKind::Memory)?;
    if instruction.is_vsib() {
        return None;
    }
    if matches!(instruction.mnemonic(), Bt | Bts | Btr | Btc) && instruction.op1_kind() == OpKind::Register {
        let size = instruction.op1_register().size();
        let first = match size {
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        instruction.set_op1_register(first + roles.small.number() as i32);
    }
    instruction.set_memory_index(Register::None);
    instruction.set_memory_index_scale(1);
    let segment = match dice.below(20) {
        0 => Register::FS,
        1 => Register::GS,
        2 => Register::DS,
        _ => Register::None,
    };
    instruction.set_segment_prefix(segment);
    let places = DATA + 64 * dice.below(100);
    let is_offset = instruction.code().op_code().op_kinds()[operand as usize] == OpCodeOperandKind::mem_offs;
    if is_offset || dice.percent(8) {
        instruction.set_memory_base(Register::None);
        instruction.set_memory_displ_size(8);
        instruction.set_memory_displacement64(places);
        return None;
    }
    if dice.percent(10) {
        instruction.set_memory_base(Register::RIP);
        instruction.set_memory_displ_size(8);
        instruction.set_memory_displacement64(places);
        return None;
    }
    let pointer = dice.pick(&roles.pointers);
    let narrow = dice.percent(6);
    let sized = |register: Register| match narrow {
        true => Register::EAX + register.number() as i32,
        false => register,
    };
    instruction.set_memory_base(sized(pointer));
    if dice.percent(25) {
        instruction.set_memory_index(sized(roles.small));
        instruction.set_memory_index_scale(dice.pick(&[1, 2, 4, 8]));
    }
    let displacement: i64 = match dice.below(8) {
        0..4 => 0,
        4 => dice.below(16) as i64 * 16,
        5 => dice.below(256) as i64 - 128,
        6 => -16,
        _ => dice.below(2048) as i64,
    };
    let size = match displacement {
        0 => 0,
        -128..128 => 1,
        _ if narrow => 4,
        _ => 8,
    };
    instruction.set_memory_displ_size(size);
    instruction.set_memory_displacement64(displacement as u64 & if narrow { 0xffff_ffff } else { u64::MAX });
    // A narrow register cannot be led everywhere, and an address that nobody touches need not be.
    (instruction.mnemonic() != Lea).then_some(pointer)
}
