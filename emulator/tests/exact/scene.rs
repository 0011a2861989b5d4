//! An instruction form set up such that it goes as far as it can: what memory and registers hold before it.

use iced_x86::{Code, Mnemonic};
use reprise_emulator::Cpu;
use reprise_emulator::cpu::gpr;

use crate::forms::Form;
use crate::layout::*;

/// What an instruction begins with.
pub struct Scene {
    pub cpu: Cpu,
    pub image: Vec<u8>,
}

/// Where the instruction begins, in bytes into the code.
fn start(offsets: Offsets, length: usize) -> u64 {
    match offsets {
        Offsets::Inside => 0x200,
        Offsets::Halves => PAGE - length as u64 / 2,
        Offsets::Byte => PAGE - 1,
    }
}

impl Scene {
    pub fn new(form: &Form, mode: Mode, offsets: Offsets, marks: Marks) -> Scene {
        assert_eq!(form.bits, mode.bits());
        let mut image = Image::new(mode, marks);
        let ip = start(offsets, form.bytes.len());
        image.at(mode, CODE + ip, &form.bytes);
        let mut set = Set {
            mode,
            operand: M + offsets.operand(form.size),
            stack: STACK + offsets.stack(),
            through_gate: offsets != Offsets::Inside,
            cpu: cpu(mode, offsets, form.size, ip),
            image,
        };
        set.contents(form);
        Scene {
            cpu: set.cpu,
            image: set.image.0,
        }
    }
}

struct Set {
    mode: Mode,
    operand: u64,
    stack: u64,
    through_gate: bool,
    cpu: Cpu,
    image: Image,
}

/// Where control goes, in bytes into the code; HLT is there.
const TARGET: u64 = 0x300;

impl Set {
    fn operand(&mut self, bytes: &[u8]) {
        self.image.at(self.mode, self.operand, bytes);
    }

    fn stack(&mut self, size: usize, values: &[u64]) {
        for (i, value) in (0..).zip(values) {
            let at = self.stack + i * size as u64;
            self.image.at(self.mode, at, &value.to_le_bytes()[..size]);
        }
    }

    fn register(&mut self, register: u8, value: u64) {
        self.cpu.gpr.set(register, value);
    }

    /// As RIP.
    fn target(&self) -> u64 {
        if self.mode == Mode::Real { TARGET } else { CODE + TARGET }
    }

    fn code(&self) -> u64 {
        match self.mode {
            Mode::Real => gpa(self.mode, CODE) >> 4,
            _ if self.mode.is_user() => FRESH_CODE3.into(),
            _ => FRESH_CODE.into(),
        }
    }

    fn data(&self) -> u64 {
        match self.mode {
            Mode::Real => gpa(self.mode, M) >> 4,
            _ if self.mode.is_user() => FRESH_DATA3.into(),
            _ => FRESH_DATA.into(),
        }
    }

    /// A selector for the instruction, in memory and in CX.
    fn selector(&mut self, selector: u64) {
        self.operand(&(selector as u16).to_le_bytes());
        self.register(gpr::RCX, selector);
    }

    fn far_pointer(&mut self, form: &Form, offset: u64, selector: u64) {
        let size = form.size - 2;
        let mut bytes = offset.to_le_bytes()[..size].to_vec();
        bytes.extend((selector as u16).to_le_bytes());
        self.operand(&bytes);
    }

    fn contents(&mut self, form: &Form) {
        let size = stack_size(form);
        let outer = [FRESH_CODE3.into(), self.cpu.gpr.get(gpr::RSP), FRESH_DATA3.into()];
        match form.code.mnemonic() {
            Mnemonic::Ret => self.stack(size, &[self.target()]),
            Mnemonic::Retf if self.mode == Mode::Real => self.stack(size, &[TARGET, self.code()]),
            Mnemonic::Retf => self.stack(size, &[self.target(), outer[0], outer[1], outer[2]]),
            Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq if self.mode == Mode::Real => {
                self.stack(size, &[TARGET, self.code(), 0x246]);
            }
            Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => {
                self.stack(size, &[self.target(), outer[0], 0x246, outer[1], outer[2]]);
            }
            Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => self.stack(size, &[0x246]),
            Mnemonic::Jmp | Mnemonic::Call if form.memory && is_far(form.code) => {
                let by_gate = self.through_gate && self.mode != Mode::Real;
                let selector = if by_gate { GATE.into() } else { self.code() };
                self.far_pointer(form, self.target(), selector);
            }
            Mnemonic::Jmp | Mnemonic::Call if form.memory => {
                let target = self.target().to_le_bytes();
                self.operand(&target[..form.size]);
            }
            Mnemonic::Les | Mnemonic::Lds | Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs => {
                self.far_pointer(form, 0x1234, self.data());
            }
            Mnemonic::Mov if format!("{:?}", form.code).starts_with("Mov_Sreg") => self.selector(self.data()),
            Mnemonic::Pop if format!("{:?}", form.code).ends_with('S') => self.stack(size, &[self.data()]),
            Mnemonic::Lldt => self.selector(LOCAL.into()),
            Mnemonic::Ltr => self.selector(FREE_TASK.into()),
            Mnemonic::Lar | Mnemonic::Lsl => self.selector(if self.through_gate { LOCAL.into() } else { self.data() }),
            Mnemonic::Verr | Mnemonic::Verw => self.selector(self.data()),
            Mnemonic::Lgdt | Mnemonic::Lidt => {
                let table = if form.code.mnemonic() == Mnemonic::Lgdt {
                    self.cpu.gdtr
                } else {
                    self.cpu.idtr
                };
                self.operand(&table.limit.to_le_bytes());
                self.operand += 2;
                self.operand(&table.base.to_le_bytes()[..form.size - 2]);
            }
            Mnemonic::Lmsw => self.selector(self.cpu.cr0.0 & 0xffff),
            Mnemonic::Mov if format!("{:?}", form.code).starts_with("Mov_cr") => self.control(form),
            Mnemonic::Ldmxcsr => self.operand(&0x1f80u32.to_le_bytes()),
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 | Mnemonic::Xrstor | Mnemonic::Xrstor64 => {
                let area = self.operand;
                self.register(gpr::RAX, 3);
                self.register(gpr::RDX, 0);
                self.operand = area + 24;
                self.operand(&0x1f80u32.to_le_bytes());
                let mut header = [0; 64];
                header[0] = 3;
                self.operand = area + 512;
                self.operand(&header);
            }
            Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsavec | Mnemonic::Xsavec64 => self.components(),
            Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => self.components(),
            Mnemonic::Xsetbv => {
                self.register(gpr::RCX, 0);
                self.components();
            }
            Mnemonic::Xgetbv => self.register(gpr::RCX, 0),
            Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b if !self.through_gate => {
                let (low, high) = (0x5566_7788_1122_3344u64, 0x0102_0304_5566_7788u64);
                let bytes = [low.to_le_bytes(), high.to_le_bytes()].concat();
                self.operand(&bytes[..form.size.max(1)]);
            }
            Mnemonic::Monitor => self.register(gpr::RAX, self.cpu.gpr.get(gpr::RBX)),
            Mnemonic::Sysret | Mnemonic::Sysretq => self.register(gpr::RCX, self.target()),
            Mnemonic::Sysexit | Mnemonic::Sysexitq => {
                self.register(gpr::RDX, self.target());
                self.register(gpr::RCX, self.cpu.gpr.get(gpr::RSP));
            }
            _ => {}
        }
    }

    /// x87 and SSE, asked for in EDX:EAX.
    fn components(&mut self) {
        self.register(gpr::RAX, 3);
        self.register(gpr::RDX, 0);
    }

    /// The control register keeps its value.
    fn control(&mut self, form: &Form) {
        let number = form.bytes[form.bytes.len() - 1] >> 3 & 7;
        let value = match number {
            0 if form.bytes[0] == 0x44 => 5,
            0 => self.cpu.cr0.0,
            3 => self.cpu.cr3,
            _ => self.cpu.cr4.0,
        };
        self.register(gpr::RCX, value);
    }
}

fn is_far(code: Code) -> bool {
    matches!(
        code,
        Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 | Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664
    )
}

/// Bytes of each pop.
fn stack_size(form: &Form) -> usize {
    match form.code.op_code().operand_size() {
        16 => 2,
        32 => 4,
        64 => 8,
        _ => form.bits as usize / 8,
    }
}
