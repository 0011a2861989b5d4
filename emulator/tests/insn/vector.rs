//! Instructions with a VEX prefix on vector registers, beside the processor that the tests run on: every encoding that
//! the emulator and the processor have, with random operands in registers and in memory; all of both states is compared.
//!
//! Unsafe, since this is what it is about: code is written to a page, and called.

use std::collections::BTreeMap;

use iced_x86::code_asm::*;
use iced_x86::{Code, CpuidFeature, EncodingKind, IcedError, Instruction, OpCodeOperandKind, OpKind, Register};
use reprise_emulator::careful::Careful;
use reprise_emulator::cpu::flags::STATUS;
use reprise_emulator::cpu::{Cpu, Cr4};
use reprise_emulator::model;
use reprise_emulator::table::Table;

use crate::world::{Area, Way, World, long_mode};

const PAGE: usize = 4096;
/// Where the memory operand lies in the page.
const DATA_AT: usize = 2048;
const DATA: usize = 128;

/// What an instruction begins with and what it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C, align(32))]
struct State {
    ymm: [[u8; 32]; 16],
    /// rax, rcx, rdx, rbx.
    gpr: [u64; 4],
    flags: u64,
    mxcsr: u32,
    host: u32,
    /// What rsi and rdi point at.
    data: [u8; DATA],
}

/// A sequence that looks random and is the same each time (Marsaglia's xorshift).
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    /// Bytes of one kind or another: edges, small numbers, floating-point numbers of both sizes, anything.
    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let random = self.next();
            let value = match random >> 60 {
                0 => 0,
                1 => u64::MAX,
                2 => random & 0x0707_0707_0707_0707,
                3 => random & 0x0000_003f_0000_003f,
                4 => random & 0x8080_8080_8080_8080,
                5 => (random as f32).to_bits().into(),
                6 => {
                    u64::from((1.0 / (random >> 40) as f32).to_bits()) << 32
                        | u64::from((random as i32 as f32).to_bits())
                }
                7 => (random as f64).to_bits(),
                8 => (-1.5 / (random >> 50) as f64).to_bits(),
                9 => random & 0x0001_ffff,
                10 => random & 0x807f_ffff_807f_ffff,
                11 => random | 0x7f80_0000_7f80_0000,
                _ => self.next(),
            };
            part.copy_from_slice(&value.to_le_bytes()[..part.len()]);
        }
    }

    fn state(&mut self) -> State {
        let mut state = State {
            ymm: [[0; 32]; 16],
            gpr: core::array::from_fn(|_| self.next()),
            flags: self.next() & STATUS | 2,
            mxcsr: 0x1f80 | ((self.next() & 3) as u32 * 0x2000),
            host: 0x1f80,
            data: [0; DATA],
        };
        for register in &mut state.ymm {
            self.fill(register);
        }
        self.fill(&mut state.data);
        state
    }
}

struct Native {
    page: *mut u8,
}

impl Native {
    fn new() -> Native {
        // SAFETY: a new private mapping.
        let page = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        Native { page: page.cast() }
    }

    fn run(&mut self, instruction: &[u8], before: &State) -> State {
        let mut state = before.clone();
        let code = assemble(instruction, self.page as u64).expect("the frame of the instruction is right");
        assert!(code.len() <= DATA_AT);
        // SAFETY: code and data fit the page, which nothing else uses; the code keeps to the System V calling convention,
        // and no exception is unmasked.
        unsafe {
            core::ptr::copy_nonoverlapping(code.as_ptr(), self.page, code.len());
            let data = self.page.add(DATA_AT);
            core::ptr::copy_nonoverlapping(before.data.as_ptr(), data, DATA);
            let function: extern "sysv64" fn(*mut State, *mut u8) = core::mem::transmute(self.page);
            function(&raw mut state, data);
            core::ptr::copy_nonoverlapping(data, state.data.as_mut_ptr(), DATA);
        }
        state.flags = state.flags & STATUS | 2;
        state
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made.
        unsafe { libc::munmap(self.page.cast(), PAGE) };
    }
}

/// A function of (state, data) that executes the instruction on the state; r13 holds it.
fn assemble(instruction: &[u8], at: u64) -> Result<Vec<u8>, IcedError> {
    const YMM: [AsmRegisterYmm; 16] = [
        ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15,
    ];
    let gpr = core::mem::offset_of!(State, gpr) as i32;
    let flags = core::mem::offset_of!(State, flags) as i32;
    let mxcsr = core::mem::offset_of!(State, mxcsr) as i32;
    let host = core::mem::offset_of!(State, host) as i32;
    let mut a = CodeAssembler::new(64)?;
    for register in [rbx, rbp, r12, r13, r14, r15] {
        a.push(register)?;
    }
    a.mov(r13, rdi)?;
    a.mov(rdi, rsi)?;
    a.vldmxcsr(dword_ptr(r13 + mxcsr))?;
    for (i, register) in YMM.into_iter().enumerate() {
        a.vmovdqu(register, ymmword_ptr(r13 + 32 * i as i32))?;
    }
    for (i, register) in [rax, rcx, rdx, rbx].into_iter().enumerate() {
        a.mov(register, qword_ptr(r13 + gpr + 8 * i as i32))?;
    }
    a.push(qword_ptr(r13 + flags))?;
    a.popfq()?;
    a.db(instruction)?;
    a.pushfq()?;
    a.pop(qword_ptr(r13 + flags))?;
    for (i, register) in [rax, rcx, rdx, rbx].into_iter().enumerate() {
        a.mov(qword_ptr(r13 + gpr + 8 * i as i32), register)?;
    }
    for (i, register) in YMM.into_iter().enumerate() {
        a.vmovdqu(ymmword_ptr(r13 + 32 * i as i32), register)?;
    }
    a.vstmxcsr(dword_ptr(r13 + mxcsr))?;
    a.vldmxcsr(dword_ptr(r13 + host))?;
    a.vzeroupper()?;
    for register in [r15, r14, r13, r12, rbp, rbx] {
        a.pop(register)?;
    }
    a.ret()?;
    a.assemble(at)
}

fn guest() -> Cpu {
    let mut cpu = long_mode();
    cpu.cr4.0 |= Cr4::OSXSAVE | Cr4::OSXMMEXCPT;
    cpu.xcr0 = 0xe7;
    cpu.gpr.set(7, cpu.gpr.get(6));
    cpu.refresh();
    cpu
}

struct Emulated {
    way: Way,
    world: World,
    start: Cpu,
}

impl Emulated {
    fn new(way: Way) -> Emulated {
        let start = guest();
        Emulated {
            way,
            world: World::new(&start),
            start,
        }
    }

    fn run(&mut self, instruction: &[u8], before: &State) -> Result<State, (u8, Option<u16>)> {
        let mut cpu = self.start.clone();
        for (vector, bytes) in cpu.fpu.vectors.iter_mut().zip(&before.ymm) {
            *vector = [u64::MAX; 8];
            for (quadword, bytes) in vector.iter_mut().zip(bytes.chunks_exact(8)) {
                *quadword = u64::from_le_bytes(bytes.try_into().unwrap());
            }
        }
        for (register, value) in before.gpr.iter().enumerate() {
            cpu.gpr.set(register as u8, *value);
        }
        cpu.fpu.mxcsr = before.mxcsr;
        cpu.flags = before.flags.into();
        self.world.fill(Area::M, 0, &before.data);
        let end = self.world.run(instruction, &cpu, self.way, false);
        if let Some(fault) = end.fault {
            return Err(fault);
        }
        let mut after = before.clone();
        for (bytes, vector) in after.ymm.iter_mut().zip(&end.cpu.fpu.vectors) {
            for (bytes, quadword) in bytes.chunks_exact_mut(8).zip(vector) {
                bytes.copy_from_slice(&quadword.to_le_bytes());
            }
        }
        for (register, value) in after.gpr.iter_mut().enumerate() {
            *value = end.cpu.gpr.get(register as u8);
        }
        after.mxcsr = end.cpu.fpu.mxcsr;
        after.flags = u64::from(end.cpu.flags) & STATUS | 2;
        after.data.copy_from_slice(&self.world.bytes(Area::M, self.way)[..DATA]);
        Ok(after)
    }
}

fn has(feature: CpuidFeature) -> bool {
    use std::arch::is_x86_feature_detected as host;
    match feature {
        CpuidFeature::AVX => host!("avx"),
        CpuidFeature::AVX2 => host!("avx2"),
        CpuidFeature::FMA => host!("fma"),
        CpuidFeature::F16C => host!("f16c"),
        CpuidFeature::AES => host!("aes"),
        CpuidFeature::VAES => host!("vaes"),
        CpuidFeature::PCLMULQDQ => host!("pclmulqdq"),
        CpuidFeature::VPCLMULQDQ => host!("vpclmulqdq"),
        CpuidFeature::GFNI => host!("gfni"),
        _ => false,
    }
}

/// What the emulator and the processor have, of one encoding.
fn codes(encoding: EncodingKind, native: bool) -> impl Iterator<Item = Code> {
    let table = Table::<Careful>::new(model::executes);
    Code::values().filter(move |code| {
        let features = code.cpuid_features();
        code.encoding() == encoding
            && table.form(*code).is_some()
            && (!native || features.iter().all(|feature| has(*feature)))
    })
}

/// A random instance of an encoding.
fn instance(code: Code, memory: bool, random: &mut Sequence) -> Option<Vec<u8>> {
    use OpCodeOperandKind::*;
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    let general = |random: &mut Sequence, wide| {
        let register = random.below(4) as u32;
        let first = if wide { Register::RAX } else { Register::EAX };
        first + register
    };
    let mut has_memory = false;
    for (i, kind) in code.op_code().op_kinds().iter().enumerate() {
        let i = i as u32;
        let (or_memory, register) = match kind {
            xmm_reg | xmm_rm | xmm_vvvv | xmm_is4 => (false, Register::XMM0 + random.below(16) as u32),
            ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 => (false, Register::YMM0 + random.below(16) as u32),
            xmm_or_mem => (true, Register::XMM0 + random.below(16) as u32),
            ymm_or_mem => (true, Register::YMM0 + random.below(16) as u32),
            r32_reg | r32_rm => (false, general(random, false)),
            r64_reg | r64_rm => (false, general(random, true)),
            r32_or_mem => (true, general(random, false)),
            r64_or_mem => (true, general(random, true)),
            mem => (true, Register::None),
            imm8 => {
                instruction.set_op_kind(i, OpKind::Immediate8);
                instruction.set_immediate8(random.next() as u8);
                continue;
            }
            seg_rDI => {
                instruction.set_op_kind(i, OpKind::MemorySegRDI);
                has_memory = true;
                continue;
            }
            // Gathers have a test of their own.
            _ => return Option::None,
        };
        if or_memory && (memory || register == Register::None) {
            instruction.set_op_kind(i, OpKind::Memory);
            instruction.set_memory_base(Register::RSI);
            let offset = if is_aligned(code) { 32 } else { 5 };
            instruction.set_memory_displacement64(offset * random.below(3) as u64);
            instruction.set_memory_displ_size(1);
            has_memory = true;
        } else {
            instruction.set_op_kind(i, OpKind::Register);
            instruction.set_op_register(i, register);
        }
    }
    if has_memory != memory {
        return Option::None;
    }
    let mut encoder = iced_x86::Encoder::new(64);
    encoder.encode(&instruction, 0).expect("operands of the right kind");
    Some(encoder.take_buffer())
}

/// Loads and stores of MXCSR: any other value than the few that the rest of the test uses faults, or traps later.
fn is_of_control(code: Code) -> bool {
    matches!(code, Code::VEX_Vldmxcsr_m32 | Code::VEX_Vstmxcsr_m32)
}

fn is_aligned(code: Code) -> bool {
    let name = format!("{code:?}");
    ["Vmovap", "Vmovdqa", "Vmovnt"].iter().any(|part| name.contains(part))
}

#[test]
fn every_vex_encoding_does_what_the_processor_does() {
    if !has(CpuidFeature::AVX2) {
        eprintln!("skipped: this processor has no AVX2");
        return;
    }
    let rounds = if std::env::var_os("REPRISE_LONG").is_some() {
        3000
    } else {
        30
    };
    let only = std::env::var("REPRISE_FORM").unwrap_or_default();
    let mut random = Sequence(0x9e37_79b9_7f4a_7c15);
    let mut native = Native::new();
    let mut emulated = [Way::Fast, Way::Careful, Way::AllLate].map(Emulated::new);
    let mut wrong = BTreeMap::new();
    let mut forms = 0;
    for code in codes(EncodingKind::VEX, true)
        .filter(|code| !is_of_control(*code))
        .filter(|code| format!("{code:?}").contains(&only))
    {
        for memory in [false, true] {
            for round in 0..rounds {
                let Some(instruction) = instance(code, memory, &mut random) else {
                    break;
                };
                forms += usize::from(round == 0);
                let before = random.state();
                let expected = native.run(&instruction, &before);
                let way = if round % 8 < 6 { 0 } else { round % 8 - 5 };
                let found = emulated[way].run(&instruction, &before);
                if found.as_ref() != Ok(&expected) {
                    let count = wrong
                        .entry(format!("{code:?} memory {memory}"))
                        .or_insert((0, String::new()));
                    count.0 += 1;
                    count.1 = describe(&instruction, &before, &expected, &found);
                }
            }
        }
    }
    println!("{forms} forms");
    assert!(
        wrong.is_empty(),
        "{}",
        wrong
            .iter()
            .map(|(name, (count, text))| format!("{name}: {count}\n{text}\n"))
            .collect::<String>()
    );
    assert!(forms > 400 || !only.is_empty(), "{forms}");
}

fn describe(instruction: &[u8], before: &State, expected: &State, found: &Result<State, (u8, Option<u16>)>) -> String {
    use std::fmt::Write;
    let decoded = iced_x86::Decoder::new(64, instruction, 0).decode();
    let registers: Vec<_> = (0..decoded.op_count()).map(|i| decoded.op_register(i)).collect();
    let mut text = format!("  {registers:?} imm {:#x} {instruction:02x?}\n", decoded.immediate8());
    for register in &registers {
        if register.is_vector_register() {
            let _ = writeln!(text, "  {register:?} = {:02x?}", before.ymm[register.number()]);
        }
    }
    if decoded.op_kinds().any(|kind| kind == OpKind::Memory) {
        let _ = writeln!(
            text,
            "  at {:#x} of {:02x?}",
            decoded.memory_displacement64(),
            before.data
        );
    }
    let Ok(found) = found else {
        return format!("{text}  {found:?}");
    };
    for i in 0..16 {
        if expected.ymm[i] != found.ymm[i] {
            let _ = writeln!(
                text,
                "  ymm{i} expected {:02x?}\n  ymm{i} found    {:02x?}",
                expected.ymm[i], found.ymm[i]
            );
        }
    }
    if (expected.gpr, expected.flags, expected.mxcsr) != (found.gpr, found.flags, found.mxcsr) {
        let _ = writeln!(
            text,
            "  expected {:x?} {:x} {:x}\n  found    {:x?} {:x} {:x}",
            expected.gpr, expected.flags, expected.mxcsr, found.gpr, found.flags, found.mxcsr
        );
    }
    if expected.data != found.data {
        let _ = writeln!(
            text,
            "  expected {:02x?}\n  found    {:02x?}",
            expected.data, found.data
        );
    }
    text
}
