//! Floating-point arithmetic and comparisons.

use iced_x86::Mnemonic::*;

use super::form::Row;
use super::lanes::{Bytes, Lanes, chunk};
use crate::insn::sse_float::exceptions::evaluate;
use crate::insn::sse_float::function::{Function, scalar};
use crate::insn::sse_float::{classify, compare, dot, exponent, horizontal, range, reciprocal, round};
use crate::native::sse::{self, Compare, Element, Fused, Range};

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    arithmetic(&mut rows);
    comparisons(&mut rows);
    numbers(&mut rows);
    fused(&mut rows);
    rows
}

fn arithmetic(rows: &mut Vec<Row>) {
    macro_rules! host {
        ($($single:ident $double:ident $single_scalar:ident $double_scalar:ident $ps:ident $pd:ident,)*) => {
            rows.extend([$(
                Row::new($single, 4, |lanes| evaluate(&const { Function::host::<sse::$ps>(4, 4) }, lanes)),
                Row::new($double, 8, |lanes| evaluate(&const { Function::host::<sse::$pd>(8, 8) }, lanes)),
                Row::new($single_scalar, 4, |lanes| scalar(&const { Function::host::<sse::$ps>(4, 4) }, lanes)).scalar(),
                Row::new($double_scalar, 8, |lanes| scalar(&const { Function::host::<sse::$pd>(8, 8) }, lanes)).scalar(),
            )*]);
        };
    }
    host! {
        Vaddps Vaddpd Vaddss Vaddsd Addps Addpd,
        Vsubps Vsubpd Vsubss Vsubsd Subps Subpd,
        Vmulps Vmulpd Vmulss Vmulsd Mulps Mulpd,
        Vdivps Vdivpd Vdivss Vdivsd Divps Divpd,
        Vminps Vminpd Vminss Vminsd Minps Minpd,
        Vmaxps Vmaxpd Vmaxss Vmaxsd Maxps Maxpd,
        Vsqrtps Vsqrtpd Vsqrtss Vsqrtsd Sqrtps Sqrtpd,
    }
    rows.extend([
        Row::new(Vrcpps, 4, |lanes| {
            evaluate(&const { Function::host::<sse::Rcpps>(4, 4) }, lanes);
        }),
        Row::new(Vrsqrtps, 4, |lanes| {
            evaluate(&const { Function::host::<sse::Rsqrtps>(4, 4) }, lanes);
        }),
        Row::new(Vrcpss, 4, |lanes| {
            scalar(&const { Function::host::<sse::Rcpps>(4, 4) }, lanes);
        })
        .scalar(),
        Row::new(Vrsqrtss, 4, |lanes| {
            scalar(&const { Function::host::<sse::Rsqrtps>(4, 4) }, lanes);
        })
        .scalar(),
        Row::new(Vaddsubps, 4, horizontal::addsubps),
        Row::new(Vaddsubpd, 8, horizontal::addsubpd),
        Row::new(Vhaddps, 4, horizontal::haddps),
        Row::new(Vhaddpd, 8, horizontal::haddpd),
        Row::new(Vhsubps, 4, horizontal::hsubps),
        Row::new(Vhsubpd, 8, horizontal::hsubpd),
        Row::new(Vdpps, 4, dot::dpps),
        Row::new(Vdppd, 8, dot::dppd),
        Row::new(Vroundps, 4, round::roundps),
        Row::new(Vroundpd, 8, round::roundpd),
        Row::new(Vroundss, 4, round::roundss).scalar(),
        Row::new(Vroundsd, 8, round::roundsd).scalar(),
    ]);
}

/// What AVX-512 has for the parts and the kinds of numbers.
fn numbers(rows: &mut Vec<Row>) {
    macro_rules! numbers {
        ($($from:ident $ps:ident $single:ident $pd:ident $double:ident $ss:ident $single_scalar:ident
           $sd:ident $double_scalar:ident;)*) => {
            rows.extend([$(
                Row::new($ps, 4, $from::$single),
                Row::new($pd, 8, $from::$double),
                Row::new($ss, 4, $from::$single_scalar).scalar(),
                Row::new($sd, 8, $from::$double_scalar).scalar(),
            )*]);
        };
    }
    numbers! {
        round Vrndscaleps rndscaleps Vrndscalepd rndscalepd Vrndscaless rndscaless Vrndscalesd rndscalesd;
        round Vreduceps reduceps Vreducepd reducepd Vreducess reducess Vreducesd reducesd;
        range Vrangeps rangeps Vrangepd rangepd Vrangess rangess Vrangesd rangesd;
        exponent Vgetexpps getexpps Vgetexppd getexppd Vgetexpss getexpss Vgetexpsd getexpsd;
        exponent Vgetmantps getmantps Vgetmantpd getmantpd Vgetmantss getmantss Vgetmantsd getmantsd;
        exponent Vscalefps scalefps Vscalefpd scalefpd Vscalefss scalefss Vscalefsd scalefsd;
        reciprocal Vrcp14ps rcp14ps Vrcp14pd rcp14pd Vrcp14ss rcp14ss Vrcp14sd rcp14sd;
        reciprocal Vrsqrt14ps rsqrt14ps Vrsqrt14pd rsqrt14pd Vrsqrt14ss rsqrt14ss Vrsqrt14sd rsqrt14sd;
    }
    rows.extend([
        Row::new(Vfpclassps, 4, classify::fpclass::<u32>),
        Row::new(Vfpclasspd, 8, classify::fpclass::<u64>),
        Row::new(Vfpclassss, 4, classify::fpclass::<u32>).scalar(),
        Row::new(Vfpclasssd, 8, classify::fpclass::<u64>).scalar(),
        Row::new(Vfixupimmps, 4, classify::fixupimm::<u32>),
        Row::new(Vfixupimmpd, 8, classify::fixupimm::<u64>),
        Row::new(Vfixupimmss, 4, classify::fixupimm_scalar::<u32>).scalar(),
        Row::new(Vfixupimmsd, 8, classify::fixupimm_scalar::<u64>).scalar(),
    ]);
}

fn comparisons(rows: &mut Vec<Row>) {
    rows.extend([
        Row::new(Vcmpps, 4, compare::packed::<u32, 4>),
        Row::new(Vcmppd, 8, compare::packed::<u64, 8>),
        Row::new(Vcmpss, 4, compare::scalar::<u32, 4>).scalar(),
        Row::new(Vcmpsd, 8, compare::scalar::<u64, 8>).scalar(),
        Row::new(Vcomiss, 4, flags::<sse::Comiss>).scalar().flags(),
        Row::new(Vcomisd, 8, flags::<sse::Comisd>).scalar().flags(),
        Row::new(Vucomiss, 4, flags::<sse::Ucomiss>).scalar().flags(),
        Row::new(Vucomisd, 8, flags::<sse::Ucomisd>).scalar().flags(),
    ]);
}

fn flags<O: Compare>(lanes: &mut Lanes) {
    let (outcome, raised) = O::run(chunk(&lanes.b, 0), chunk(&lanes.c, 0), lanes.mxcsr);
    lanes.out = outcome;
    lanes.raised |= raised;
}

/// Which operand is added: the number in the mnemonic names the factors first.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// 132: destination × third + second.
    Second,
    /// 213: second × destination + third.
    Third,
    /// 231: second × third + destination.
    Destination,
}

/// a × b + c with one rounding.
fn multiply_add(function: &Function, order: Order, lanes: &mut Lanes) {
    let (first, second, third): (Bytes, Bytes, Bytes) = (lanes.a, lanes.b, lanes.c);
    (lanes.a, lanes.b, lanes.c) = match order {
        Order::Second => (first, third, second),
        Order::Third => (second, first, third),
        Order::Destination => (second, third, first),
    };
    evaluate(function, lanes);
}

/// The same of the first element; the destination's others stay.
fn multiply_add_scalar(function: &Function, order: Order, lanes: &mut Lanes) {
    let above = lanes.a;
    multiply_add(function, order, lanes);
    lanes.a[function.result..].copy_from_slice(&above[function.result..]);
}

fn fused(rows: &mut Vec<Row>) {
    macro_rules! function {
        ($signs:ident $element:ident $step:ident) => {
            &const {
                Function {
                    step: |chunk| sse::$step(chunk.a, chunk.b, chunk.c, chunk.mxcsr),
                    range: Range::Fused(Fused::$signs, Element::$element),
                    source: Element::$element.size(),
                    result: Element::$element.size(),
                }
            }
        };
    }
    macro_rules! packed {
        ($($signs:ident $ps:ident $pd:ident: $($order:ident $single:ident $double:ident,)*;)*) => {
            rows.extend([$($(
                Row::new($single, 4, |lanes| multiply_add(function!($signs Single $ps), Order::$order, lanes)),
                Row::new($double, 8, |lanes| multiply_add(function!($signs Double $pd), Order::$order, lanes)),
            )*)*]);
        };
    }
    macro_rules! scalars {
        ($($signs:ident $ps:ident $pd:ident: $($order:ident $single:ident $double:ident,)*;)*) => {
            rows.extend([$($(
                Row::new($single, 4, |lanes| multiply_add_scalar(function!($signs Single $ps), Order::$order, lanes))
                    .scalar(),
                Row::new($double, 8, |lanes| multiply_add_scalar(function!($signs Double $pd), Order::$order, lanes))
                    .scalar(),
            )*)*]);
        };
    }
    packed! {
        Add fmaddps fmaddpd:
            Second Vfmadd132ps Vfmadd132pd, Third Vfmadd213ps Vfmadd213pd, Destination Vfmadd231ps Vfmadd231pd,;
        Sub fmsubps fmsubpd:
            Second Vfmsub132ps Vfmsub132pd, Third Vfmsub213ps Vfmsub213pd, Destination Vfmsub231ps Vfmsub231pd,;
        NegatedAdd fnmaddps fnmaddpd:
            Second Vfnmadd132ps Vfnmadd132pd, Third Vfnmadd213ps Vfnmadd213pd, Destination Vfnmadd231ps Vfnmadd231pd,;
        NegatedSub fnmsubps fnmsubpd:
            Second Vfnmsub132ps Vfnmsub132pd, Third Vfnmsub213ps Vfnmsub213pd, Destination Vfnmsub231ps Vfnmsub231pd,;
        AddSub fmaddsubps fmaddsubpd:
            Second Vfmaddsub132ps Vfmaddsub132pd, Third Vfmaddsub213ps Vfmaddsub213pd,
            Destination Vfmaddsub231ps Vfmaddsub231pd,;
        SubAdd fmsubaddps fmsubaddpd:
            Second Vfmsubadd132ps Vfmsubadd132pd, Third Vfmsubadd213ps Vfmsubadd213pd,
            Destination Vfmsubadd231ps Vfmsubadd231pd,;
    }
    scalars! {
        Add fmaddps fmaddpd:
            Second Vfmadd132ss Vfmadd132sd, Third Vfmadd213ss Vfmadd213sd, Destination Vfmadd231ss Vfmadd231sd,;
        Sub fmsubps fmsubpd:
            Second Vfmsub132ss Vfmsub132sd, Third Vfmsub213ss Vfmsub213sd, Destination Vfmsub231ss Vfmsub231sd,;
        NegatedAdd fnmaddps fnmaddpd:
            Second Vfnmadd132ss Vfnmadd132sd, Third Vfnmadd213ss Vfnmadd213sd, Destination Vfnmadd231ss Vfnmadd231sd,;
        NegatedSub fnmsubps fnmsubpd:
            Second Vfnmsub132ss Vfnmsub132sd, Third Vfnmsub213ss Vfnmsub213sd, Destination Vfnmsub231ss Vfnmsub231sd,;
    }
}
