//! What each instruction does, said in tables of assembly, registers and flags.
//!
//! `world` holds the machine that a row runs on and the ways in which it runs; `native` compares with the processor that
//! the tests run on. The other modules are named as those of `emulator/src/insn`.

#[macro_use]
mod asm;
#[macro_use]
mod row;
mod world;

mod arith;
mod bcd;
mod bits;
mod bmi;
mod control;
mod devices;
mod direct;
mod fields;
mod mov;
mod muldiv;
mod native;
mod opmask;
mod shift;
mod stack;
mod string;
#[path = "../tier/mod.rs"]
mod tier;
mod vector;
mod wide;
