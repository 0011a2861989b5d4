//! What an instruction starts from and what it leaves.

use std::fmt::{Display, Formatter, Result, Write};

use crate::cases::Random;

/// Bytes of the memory operand that rsi and rdi point at.
pub const DATA: usize = 1024;

/// Registers and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct State {
    /// As FXSAVE64 stores it.
    pub fx: [u8; 512],
    /// Bits 255:128 of YMM0 to YMM15.
    pub upper: [[u8; 16]; 16],
    /// rax, rcx, rdx, rbx.
    pub gpr: [u64; 4],
    /// RFLAGS.
    pub flags: u64,
    /// What rsi and rdi point at.
    pub data: [u8; DATA],
}

/// Which exceptions are masked in a random state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masks {
    /// All.
    All,
    /// Some, but none of what the status word has flagged.
    Some,
    /// Some; what the status word has flagged may be pending.
    Pending,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub state: State,
    /// #XM was raised.
    pub trapped: bool,
}

/// Status flags of RFLAGS.
pub const STATUS: u64 = 0x8d5;

impl State {
    /// A random state.
    pub fn random(random: &mut Random, masks: Masks) -> State {
        let mut fx = [0; 512];
        let x87_masks = if masks == Masks::All {
            0x3f
        } else {
            random.next() as u16 & 0x3f
        };
        let control = random.next() as u16 & 0x0f00 | 0x40 | x87_masks;
        let mut flags = random.next() as u16 & random.next() as u16 & 0x473f;
        if masks == Masks::Some {
            flags &= !(!x87_masks & 0x3f);
        }
        let status = flags | (random.next() as u16 & 7) << 11;
        fx[0..2].copy_from_slice(&control.to_le_bytes());
        fx[2..4].copy_from_slice(&status.to_le_bytes());
        fx[4] = (random.next() | random.next() | random.next()) as u8;
        // The opcode and both exception pointers.
        fx[6..8].copy_from_slice(&(random.next() as u16 & 0x7ff).to_le_bytes());
        fx[8..16].copy_from_slice(&(random.next() >> 17).to_le_bytes());
        fx[16..24].copy_from_slice(&(random.next() >> 17).to_le_bytes());
        let all = masks == Masks::All;
        let masks = if all { 0x1f80 } else { random.next() as u32 & 0x1f80 };
        let mxcsr = random.next() as u32 & random.next() as u32 & 0xe07f | masks;
        fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        for i in 0..8 {
            fx[32 + 16 * i..][..10].copy_from_slice(&random.extended());
        }
        for i in 0..16 {
            fx[160 + 16 * i..][..16].copy_from_slice(&random.vector());
        }
        let mut data = [0; DATA];
        for (i, chunk) in data[..128].chunks_exact_mut(16).enumerate() {
            match (i, random.next() % 3) {
                (0, 0) => chunk[..10].copy_from_slice(&random.extended()),
                (0, 1) => chunk[..8].copy_from_slice(&random.integer().to_le_bytes()),
                _ => chunk.copy_from_slice(&random.vector()),
            }
        }
        State {
            fx,
            upper: [(); 16].map(|()| random.vector()),
            gpr: [0; 4].map(|_| random.integer()),
            flags: random.next() & STATUS | 2,
            data,
        }
    }
}

impl Outcome {
    /// The fields that differ, a line each. Exception pointers name addresses and are looked at only if the instruction did
    /// not set them.
    pub fn differences(&self, expected: &Outcome, pointers: bool) -> String {
        let mut text = String::new();
        let mut field = |name: &str, got: &[u8], want: &[u8]| {
            if got != want {
                writeln!(text, "{name}: got {got:02x?}, want {want:02x?}").expect("strings take everything");
            }
        };
        let (a, b) = (&self.state, &expected.state);
        field("trapped", &[u8::from(self.trapped)], &[u8::from(expected.trapped)]);
        field("control", &a.fx[0..2], &b.fx[0..2]);
        field("status", &a.fx[2..4], &b.fx[2..4]);
        field("tags", &a.fx[4..6], &b.fx[4..6]);
        if pointers {
            field("pointers", &a.fx[6..24], &b.fx[6..24]);
        }
        field("mxcsr", &a.fx[24..28], &b.fx[24..28]);
        for i in 0..8 {
            let range = 32 + 16 * i..48 + 16 * i;
            field(&format!("st({i})"), &a.fx[range.clone()], &b.fx[range]);
        }
        for i in 0..16 {
            let range = 160 + 16 * i..176 + 16 * i;
            field(&format!("xmm{i}"), &a.fx[range.clone()], &b.fx[range]);
        }
        for i in 0..16 {
            field(&format!("upper half of ymm{i}"), &a.upper[i], &b.upper[i]);
        }
        for (i, name) in ["rax", "rcx", "rdx", "rbx"].into_iter().enumerate() {
            field(name, &a.gpr[i].to_le_bytes(), &b.gpr[i].to_le_bytes());
        }
        field(
            "flags",
            &(a.flags & STATUS).to_le_bytes(),
            &(b.flags & STATUS).to_le_bytes(),
        );
        field("data", &a.data[..64], &b.data[..64]);
        field("data beyond the operand", &a.data[64..], &b.data[64..]);
        text
    }
}

impl Display for State {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let hex = |bytes: &[u8]| bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
        let fx = &self.fx;
        writeln!(
            f,
            "control {} status {} tags {} mxcsr {} flags {:x} rax, rcx, rdx, rbx {:x?}",
            hex(&fx[0..2]),
            hex(&fx[2..4]),
            hex(&fx[4..5]),
            hex(&fx[24..28]),
            self.flags,
            self.gpr
        )?;
        for i in 0..8 {
            writeln!(f, "st({i}) {}", hex(&fx[32 + 16 * i..42 + 16 * i]))?;
        }
        for i in 0..16 {
            writeln!(
                f,
                "ymm{i} {}:{}",
                hex(&self.upper[i]),
                hex(&fx[160 + 16 * i..176 + 16 * i])
            )?;
        }
        writeln!(f, "data {}", hex(&self.data[..16]))
    }
}
