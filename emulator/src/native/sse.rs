//! SSE and SSE2 arithmetic on the host.
//!
//! This module is unsafe because there is no other way to compute under another MXCSR than Rust's: the compiler must not
//! see floating-point operations, only assembly.
#![allow(unsafe_code, reason = "computing under the guest's MXCSR takes inline assembly")]

use core::arch::asm;
use core::arch::x86_64::__m128i;

/// Invalid operation, in MXCSR.
pub const IE: u32 = 1 << 0;
/// Denormal operand.
pub const DE: u32 = 1 << 1;
/// Division by zero.
pub const ZE: u32 = 1 << 2;
/// Overflow.
pub const OE: u32 = 1 << 3;
/// Underflow.
pub const UE: u32 = 1 << 4;
/// Inexact.
pub const PE: u32 = 1 << 5;
/// All flags.
pub const FLAGS: u32 = 0x3f;
/// Denormal operands are zeros.
pub const DAZ: u32 = 1 << 6;
/// All masks.
pub const MASKS: u32 = 0x1f80;
/// Tiny results are zeros.
pub const FTZ: u32 = 1 << 15;

/// Rust's environment.
static HOST: u32 = 0x1f80;

/// How an operation can overflow or underflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Not at all.
    Safe,
    /// As arithmetic on this many singles or doubles does.
    Arithmetic(Arithmetic, Element, usize),
    /// As the conversion of this many doubles to singles does.
    Narrowing(usize),
    /// As a multiplication and an addition with one rounding do, on all elements.
    Fused(Fused, Element),
}

/// The signs of a × b + c.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fused {
    /// a × b + c
    Add,
    /// a × b − c
    Sub,
    /// −(a × b) + c
    NegatedAdd,
    /// −(a × b) − c
    NegatedSub,
    /// a × b + c in odd elements, a × b − c in even ones
    AddSub,
    /// a × b − c in odd elements, a × b + c in even ones
    SubAdd,
}

/// The four operations whose results can leave the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a × b
    Mul,
    /// a ÷ b
    Div,
}

/// Element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32 bits.
    Single,
    /// 64 bits.
    Double,
}

impl Element {
    /// Size in bytes.
    pub const fn size(self) -> usize {
        match self {
            Single => 4,
            Double => 8,
        }
    }
}

/// An operation of a destination and a source register.
pub trait Operation: 'static {
    /// Whether results can leave the range.
    const RANGE: Range = Range::Safe;

    /// Executes it on destination `a` and source `b` under `mxcsr`, but with all exceptions masked: the new destination and
    /// the flags raised.
    fn run(a: [u8; 16], b: [u8; 16], mxcsr: u32) -> ([u8; 16], u32);
}

fn vector(bytes: [u8; 16]) -> __m128i {
    // SAFETY: both are 16 bytes of plain data.
    unsafe { core::mem::transmute(bytes) }
}

fn bytes(vector: __m128i) -> [u8; 16] {
    // SAFETY: both are 16 bytes of plain data.
    unsafe { core::mem::transmute(vector) }
}

/// Executes instructions under `$mxcsr` without flags and with all exceptions masked; gives the flags raised.
macro_rules! under {
    ($mxcsr:expr, [$($line:expr),*], $($operands:tt)*) => {{
        let mut control: u32 = $mxcsr & !FLAGS | MASKS;
        // SAFETY: the instructions work on registers alone, their exceptions are masked, and Rust's MXCSR is put back.
        unsafe {
            asm!(
                "ldmxcsr [{control}]",
                $($line,)*
                "stmxcsr [{control}]",
                "ldmxcsr [{host}]",
                control = in(reg) &raw mut control,
                host = in(reg) &raw const HOST,
                $($operands)*
                options(nostack),
            );
        }
        control & FLAGS
    }};
}

macro_rules! operations {
    ($($name:ident $instruction:literal $($range:expr)?;)*) => {$(
        #[doc = concat!("`", $instruction, "`")]
        pub struct $name;

        impl Operation for $name {
            $(const RANGE: Range = $range;)?

            #[inline]
            fn run(a: [u8; 16], b: [u8; 16], mxcsr: u32) -> ([u8; 16], u32) {
                let mut a = vector(a);
                let b = vector(b);
                let flags = under!(
                    mxcsr,
                    [concat!($instruction, " {a}, {b}")],
                    a = inout(xmm_reg) a,
                    b = in(xmm_reg) b,
                );
                (bytes(a), flags)
            }
        }
    )*};
}

use Arithmetic::{Add, Div, Mul, Sub};
use Element::{Double, Single};

operations! {
    Addps "addps" Range::Arithmetic(Add, Single, 4);
    Addpd "addpd" Range::Arithmetic(Add, Double, 2);
    Addss "addss" Range::Arithmetic(Add, Single, 1);
    Addsd "addsd" Range::Arithmetic(Add, Double, 1);
    Subps "subps" Range::Arithmetic(Sub, Single, 4);
    Subpd "subpd" Range::Arithmetic(Sub, Double, 2);
    Subss "subss" Range::Arithmetic(Sub, Single, 1);
    Subsd "subsd" Range::Arithmetic(Sub, Double, 1);
    Mulps "mulps" Range::Arithmetic(Mul, Single, 4);
    Mulpd "mulpd" Range::Arithmetic(Mul, Double, 2);
    Mulss "mulss" Range::Arithmetic(Mul, Single, 1);
    Mulsd "mulsd" Range::Arithmetic(Mul, Double, 1);
    Divps "divps" Range::Arithmetic(Div, Single, 4);
    Divpd "divpd" Range::Arithmetic(Div, Double, 2);
    Divss "divss" Range::Arithmetic(Div, Single, 1);
    Divsd "divsd" Range::Arithmetic(Div, Double, 1);
    Minps "minps";
    Minpd "minpd";
    Minss "minss";
    Minsd "minsd";
    Maxps "maxps";
    Maxpd "maxpd";
    Maxss "maxss";
    Maxsd "maxsd";
    Sqrtps "sqrtps";
    Sqrtpd "sqrtpd";
    Sqrtss "sqrtss";
    Sqrtsd "sqrtsd";
    Rcpps "rcpps";
    Rcpss "rcpss";
    Rsqrtps "rsqrtps";
    Rsqrtss "rsqrtss";
    Cvtps2pd "cvtps2pd";
    Cvtpd2ps "cvtpd2ps" Range::Narrowing(2);
    Cvtss2sd "cvtss2sd";
    Cvtsd2ss "cvtsd2ss" Range::Narrowing(1);
    Cvtdq2ps "cvtdq2ps";
    Cvtps2dq "cvtps2dq";
    Cvttps2dq "cvttps2dq";
    Cvtdq2pd "cvtdq2pd";
    Cvtpd2dq "cvtpd2dq";
    Cvttpd2dq "cvttpd2dq";
}

macro_rules! comparisons {
    ($($name:ident $instruction:literal;)*) => {$(
        #[doc = concat!("`", $instruction, "` with predicate `P`, 0 to 7.")]
        pub struct $name<const P: u8>;

        impl<const P: u8> Operation for $name<P> {
            fn run(a: [u8; 16], b: [u8; 16], mxcsr: u32) -> ([u8; 16], u32) {
                let mut a = vector(a);
                let b = vector(b);
                let flags = under!(
                    mxcsr,
                    [concat!($instruction, " {a}, {b}, {p}")],
                    a = inout(xmm_reg) a,
                    b = in(xmm_reg) b,
                    p = const P,
                );
                (bytes(a), flags)
            }
        }
    )*};
}

comparisons! {
    Cmpps "cmpps";
    Cmppd "cmppd";
    Cmpss "cmpss";
    Cmpsd "cmpsd";
}

/// A comparison of the low elements that leaves its outcome in RFLAGS.
pub trait Compare: 'static {
    /// Size of an element in bytes.
    const SIZE: u64;

    /// Executes it: CF, PF and ZF as RFLAGS has them, and the flags raised.
    fn run(a: [u8; 16], b: [u8; 16], mxcsr: u32) -> (u64, u32);
}

macro_rules! compares {
    ($($name:ident $instruction:literal $size:literal;)*) => {$(
        #[doc = concat!("`", $instruction, "`")]
        pub struct $name;

        impl Compare for $name {
            const SIZE: u64 = $size;

            fn run(a: [u8; 16], b: [u8; 16], mxcsr: u32) -> (u64, u32) {
                let a = vector(a);
                let b = vector(b);
                let outcome: u64;
                let flags = under!(
                    mxcsr,
                    [concat!($instruction, " {a}, {b}"), "lahf"],
                    a = in(xmm_reg) a,
                    b = in(xmm_reg) b,
                    out("rax") outcome,
                );
                (outcome >> 8 & 0x45, flags)
            }
        }
    )*};
}

compares! {
    Comiss "comiss" 4;
    Ucomiss "ucomiss" 4;
    Comisd "comisd" 8;
    Ucomisd "ucomisd" 8;
}

/// A conversion of the low element to an integer.
pub trait ToInteger: 'static {
    /// Size of the source in bytes.
    const SIZE: u64;

    /// Executes it: the integer, zero-extended, and the flags raised.
    fn run(b: [u8; 16], mxcsr: u32) -> (u64, u32);
}

macro_rules! to_integer {
    ($($name:ident $instruction:literal $register:literal $size:literal;)*) => {$(
        #[doc = concat!("`", $instruction, "`")]
        pub struct $name;

        impl ToInteger for $name {
            const SIZE: u64 = $size;

            fn run(b: [u8; 16], mxcsr: u32) -> (u64, u32) {
                let b = vector(b);
                let integer: u64;
                let flags = under!(
                    mxcsr,
                    [concat!($instruction, " {i:", $register, "}, {b}")],
                    i = out(reg) integer,
                    b = in(xmm_reg) b,
                );
                (integer, flags)
            }
        }
    )*};
}

to_integer! {
    Cvtss2si32 "cvtss2si" "e" 4;
    Cvtss2si64 "cvtss2si" "r" 4;
    Cvttss2si32 "cvttss2si" "e" 4;
    Cvttss2si64 "cvttss2si" "r" 4;
    Cvtsd2si32 "cvtsd2si" "e" 8;
    Cvtsd2si64 "cvtsd2si" "r" 8;
    Cvttsd2si32 "cvttsd2si" "e" 8;
    Cvttsd2si64 "cvttsd2si" "r" 8;
}

/// A conversion of an integer into the low element.
pub trait FromInteger: 'static {
    /// Executes it: the new destination, and the flags raised.
    fn run(a: [u8; 16], integer: u64, mxcsr: u32) -> ([u8; 16], u32);
}

macro_rules! from_integer {
    ($($name:ident $instruction:literal $register:literal;)*) => {$(
        #[doc = concat!("`", $instruction, "`")]
        pub struct $name;

        impl FromInteger for $name {
            fn run(a: [u8; 16], integer: u64, mxcsr: u32) -> ([u8; 16], u32) {
                let mut a = vector(a);
                let flags = under!(
                    mxcsr,
                    [concat!($instruction, " {a}, {i:", $register, "}")],
                    a = inout(xmm_reg) a,
                    i = in(reg) integer,
                );
                (bytes(a), flags)
            }
        }
    )*};
}

from_integer! {
    Cvtsi2ss32 "cvtsi2ss" "e";
    Cvtsi2ss64 "cvtsi2ss" "r";
    Cvtsi2sd32 "cvtsi2sd" "e";
    Cvtsi2sd64 "cvtsi2sd" "r";
}

/// Whether the host has FMA; without it the functions below must not run.
pub fn has_fma() -> bool {
    std::arch::is_x86_feature_detected!("fma")
}

macro_rules! fused {
    ($($name:ident $instruction:literal;)*) => {$(
        #[doc = concat!("`", $instruction, "` of `a`, `b` and `c`: the new `c`, and the flags raised.")]
        pub fn $name(a: [u8; 16], b: [u8; 16], c: [u8; 16], mxcsr: u32) -> ([u8; 16], u32) {
            let (a, mut b, c) = (vector(a), vector(b), vector(c));
            // Of two NaNs the first factor's counts, which is the second operand.
            let flags = under!(
                mxcsr,
                [concat!($instruction, " {b}, {a}, {c}")],
                a = in(xmm_reg) a,
                b = inout(xmm_reg) b,
                c = in(xmm_reg) c,
            );
            (bytes(b), flags)
        }
    )*};
}

fused! {
    fmaddps "vfmadd213ps";
    fmaddpd "vfmadd213pd";
    fmsubps "vfmsub213ps";
    fmsubpd "vfmsub213pd";
    fnmaddps "vfnmadd213ps";
    fnmaddpd "vfnmadd213pd";
    fnmsubps "vfnmsub213ps";
    fnmsubpd "vfnmsub213pd";
    fmaddsubps "vfmaddsub213ps";
    fmaddsubpd "vfmaddsub213pd";
    fmsubaddps "vfmsubadd213ps";
    fmsubaddpd "vfmsubadd213pd";
}
