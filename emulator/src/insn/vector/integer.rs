//! Integer arithmetic, logic, comparisons and shifts, element by element or in groups of 16 bytes.

use iced_x86::Mnemonic::{self, *};

use super::form::Row;
use super::kernel::{count, immediate_count, packed};
use super::lanes::{Kernel, Lanes, chunk};
use crate::insn::shuffle::{Lane, sign_mask};
use crate::native::packed as op;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    arithmetic(&mut rows);
    logic(&mut rows);
    comparisons(&mut rows);
    shifts(&mut rows);
    rows
}

macro_rules! packed_rows {
    ($rows:ident $element:literal: $($mnemonic:ident $op:ident,)*) => {
        $rows.extend([$(Row::new($mnemonic, $element, packed::<op::$op>),)*]);
    };
}

fn arithmetic(rows: &mut Vec<Row>) {
    packed_rows! { rows 1:
        Vpaddb Paddb, Vpaddsb Paddsb, Vpaddusb Paddusb, Vpsubb Psubb, Vpsubsb Psubsb, Vpsubusb Psubusb, Vpavgb Pavgb,
        Vpminub Pminub, Vpmaxub Pmaxub,
    }
    packed_rows! { rows 2:
        Vpaddw Paddw, Vpaddsw Paddsw, Vpaddusw Paddusw, Vpsubw Psubw, Vpsubsw Psubsw, Vpsubusw Psubusw, Vpavgw Pavgw,
        Vpmullw Pmullw, Vpmulhw Pmulhw, Vpmulhuw Pmulhuw, Vpminsw Pminsw, Vpmaxsw Pmaxsw,
    }
    packed_rows! { rows 4: Vpaddd Paddd, Vpsubd Psubd, }
    packed_rows! { rows 8: Vpaddq Paddq, Vpsubq Psubq, Vpmuludq Pmuludq, }
    rows.extend([
        Row::new(Vpmaddwd, 4, packed::<op::Pmaddwd>).whole(),
        Row::new(Vpsadbw, 8, packed::<op::Psadbw>).whole(),
        Row::new(Vpmullq, 8, |lanes| lanes.binary(u64::wrapping_mul)),
        Row::new(Vpminsq, 8, |lanes| lanes.binary(i64::min)),
        Row::new(Vpmaxsq, 8, |lanes| lanes.binary(i64::max)),
        Row::new(Vpminuq, 8, |lanes| lanes.binary(u64::min)),
        Row::new(Vpmaxuq, 8, |lanes| lanes.binary(u64::max)),
        Row::new(Vpabsq, 8, |lanes| lanes.unary(|c: i64| c.wrapping_abs())),
        Row::new(Vplzcntd, 4, |lanes| lanes.unary(u32::leading_zeros)),
        Row::new(Vplzcntq, 8, |lanes| lanes.unary(|c: u64| u64::from(c.leading_zeros()))),
        Row::new(Vpconflictd, 4, conflict::<u32>).whole(),
        Row::new(Vpconflictq, 8, conflict::<u64>).whole(),
        Row::new(Vdbpsadbw, 2, sums_of_differences).whole(),
    ]);
}

/// VPCONFLICTD and VPCONFLICTQ: a bit for each earlier element that is equal.
fn conflict<T: Lane + Eq + TryFrom<u64> + Default>(lanes: &mut Lanes) {
    for i in 0..lanes.count::<T>() {
        let element = T::get(&lanes.c, i);
        let equal = (0..i).filter(|earlier| T::get(&lanes.c, *earlier) == element);
        let bits = equal.fold(0, |bits, earlier| bits | 1u64 << earlier);
        T::try_from(bits).unwrap_or_default().put(&mut lanes.a, i);
    }
}

/// VDBPSADBW: sums of absolute differences of four bytes, of the first source and of the second shuffled by the immediate.
fn sums_of_differences(lanes: &mut Lanes) {
    let imm = lanes.imm;
    lanes.chunks(|_, b, c| {
        let mut shuffled = [0; 16];
        for i in 0..4 {
            u32::get(&c, usize::from(imm >> (2 * i) & 3)).put(&mut shuffled, i);
        }
        let sum = |b: usize, c: usize, first: &[u8], second: &[u8]| -> u16 {
            (0..4).map(|i| u16::from(first[b + i].abs_diff(second[c + i]))).sum()
        };
        let mut out = [0; 16];
        for half in [0, 8] {
            for (i, (first, second)) in [(0, 0), (0, 1), (4, 2), (4, 3)].into_iter().enumerate() {
                sum(half + first, half + second, &b, &shuffled).put(&mut out, half / 2 + i);
            }
        }
        out
    });
}

fn logic(rows: &mut Vec<Row>) {
    packed_rows! { rows 4:
        Vpand Pand, Vpandn Pandn, Vpor Por, Vpxor Pxor,
        Vpandd Pand, Vpandnd Pandn, Vpord Por, Vpxord Pxor,
        Vandps Pand, Vandnps Pandn, Vorps Por, Vxorps Pxor,
    }
    packed_rows! { rows 8:
        Vpandq Pand, Vpandnq Pandn, Vporq Por, Vpxorq Pxor,
        Vandpd Pand, Vandnpd Pandn, Vorpd Por, Vxorpd Pxor,
    }
    rows.extend([
        Row::new(Vpternlogd, 4, ternary_logic),
        Row::new(Vpternlogq, 8, ternary_logic),
        Row::new(Vptest, 1, |lanes| test(lanes, u64::MAX)).flags(),
        Row::new(Vtestps, 4, |lanes| test(lanes, 0x8000_0000_8000_0000)).flags(),
        Row::new(Vtestpd, 8, |lanes| test(lanes, 0x8000_0000_0000_0000)).flags(),
        Row::new(Vpmovmskb, 1, signs::<1>),
        Row::new(Vmovmskps, 4, signs::<4>),
        Row::new(Vmovmskpd, 8, signs::<8>),
    ]);
}

/// VPTERNLOG: each bit of the result is the bit of the immediate that the three operands' bits name.
fn ternary_logic(lanes: &mut Lanes) {
    let imm = lanes.imm;
    lanes.ternary(|a: u64, b, c| {
        let mut out = 0;
        for i in (0..8).filter(|i| imm >> i & 1 != 0) {
            let pick = |operand: u64, bit: u8| if i >> bit & 1 != 0 { operand } else { !operand };
            out |= pick(a, 2) & pick(b, 1) & pick(c, 0);
        }
        out
    });
}

/// VPTEST and its like: ZF says that the operands have no bit in common, CF that the second has none that the first has
/// not; only those in `mask` count.
fn test(lanes: &mut Lanes, mask: u64) {
    use crate::cpu::flags::{CF, ZF};
    let none = |f: fn(u64, u64) -> u64| {
        let quadwords = 0..lanes.count::<u64>();
        quadwords.fold(0, |bits, i| bits | f(u64::get(&lanes.b, i), u64::get(&lanes.c, i))) & mask == 0
    };
    let zero = if none(|b, c| b & c) { ZF } else { 0 };
    let carry = if none(|b, c| !b & c) { CF } else { 0 };
    lanes.out = zero | carry;
}

/// The sign of each element, to a general-purpose register.
fn signs<const ELEMENT: usize>(lanes: &mut Lanes) {
    sign_mask::<ELEMENT>(&lanes.c[..lanes.bytes]).put(&mut lanes.a, 0);
}

/// Comparisons give all ones in a vector, or a bit in an opmask: the kernels do both.
fn comparisons(rows: &mut Vec<Row>) {
    fn all_ones<T: Lane, const ELEMENT: usize>(lanes: &mut Lanes, f: impl Fn(T, T) -> bool) {
        lanes.compare(f);
        for i in 0..lanes.count::<T>() {
            let value = if lanes.out >> i & 1 != 0 { 0xff } else { 0 };
            lanes.a[i * ELEMENT..(i + 1) * ELEMENT].fill(value);
        }
    }
    macro_rules! compares {
        ($($equal:ident $greater:ident $compare:ident $unsigned:ident $t:ty, $u:ty, $element:literal;)*) => {
            rows.extend([$(
                Row::new($equal, $element, |lanes| all_ones::<$t, $element>(lanes, |b, c| b == c)),
                Row::new($greater, $element, |lanes| all_ones::<$t, $element>(lanes, |b, c| b > c)),
                Row::new($compare, $element, predicate::<$t>),
                Row::new($unsigned, $element, predicate::<$u>),
            )*]);
        };
    }
    compares! {
        Vpcmpeqb Vpcmpgtb Vpcmpb Vpcmpub i8, u8, 1;
        Vpcmpeqw Vpcmpgtw Vpcmpw Vpcmpuw i16, u16, 2;
        Vpcmpeqd Vpcmpgtd Vpcmpd Vpcmpud i32, u32, 4;
        Vpcmpeqq Vpcmpgtq Vpcmpq Vpcmpuq i64, u64, 8;
    }
    macro_rules! tests {
        ($($test:ident $not:ident $to:ident $from:ident $t:ty, $i:ty, $element:literal;)*) => {
            rows.extend([$(
                Row::new($test, $element, |lanes| lanes.compare(|b: $t, c| b & c != 0)),
                Row::new($not, $element, |lanes| lanes.compare(|b: $t, c| b & c == 0)),
                // Of the one source the sign.
                Row::new($to, $element, |lanes| lanes.compare(|_, c: $i| c < 0)),
                Row::new($from, $element, |lanes| {
                    let mask = u64::get(&lanes.c, 0);
                    for i in 0..lanes.count::<$t>() {
                        let value: $t = if mask >> i & 1 != 0 { <$t>::MAX } else { 0 };
                        value.put(&mut lanes.a, i);
                    }
                }),
            )*]);
        };
    }
    tests! {
        Vptestmb Vptestnmb Vpmovb2m Vpmovm2b u8, i8, 1;
        Vptestmw Vptestnmw Vpmovw2m Vpmovm2w u16, i16, 2;
        Vptestmd Vptestnmd Vpmovd2m Vpmovm2d u32, i32, 4;
        Vptestmq Vptestnmq Vpmovq2m Vpmovm2q u64, i64, 8;
    }
}

/// VPCMP: the comparison that the immediate's low three bits name.
fn predicate<T: Lane + Ord>(lanes: &mut Lanes) {
    match lanes.imm & 7 {
        0 => lanes.compare(|b: T, c| b == c),
        1 => lanes.compare(|b: T, c| b < c),
        2 => lanes.compare(|b: T, c| b <= c),
        3 => lanes.out = 0,
        4 => lanes.compare(|b: T, c| b != c),
        5 => lanes.compare(|b: T, c| b >= c),
        6 => lanes.compare(|b: T, c| b > c),
        _ => lanes.out = u64::MAX,
    }
}

fn shifts(rows: &mut Vec<Row>) {
    macro_rules! by_count {
        ($($mnemonic:ident $op:ident $element:literal,)*) => {
            rows.extend([$(
                Row::new($mnemonic, $element, count::<op::$op>).by_source().whole(),
                Row::new($mnemonic, $element, immediate_count::<op::$op>).by_immediate(),
            )*]);
        };
    }
    by_count! {
        Vpsllw Psllw 2, Vpslld Pslld 4, Vpsllq Psllq 8,
        Vpsrlw Psrlw 2, Vpsrld Psrld 4, Vpsrlq Psrlq 8,
        Vpsraw Psraw 2, Vpsrad Psrad 4,
    }
    rows.extend([
        Row::new(Vpslldq, 1, immediate_count::<op::Pslldq>),
        Row::new(Vpsrldq, 1, immediate_count::<op::Psrldq>),
        Row::new(Vpsraq, 8, |lanes| {
            let count = u64::get(&chunk(&lanes.c, 0), 0);
            lanes.binary(|b, _| shift_signed(b, count));
        })
        .by_source()
        .whole(),
        Row::new(Vpsraq, 8, |lanes| {
            let count = u64::from(lanes.imm);
            lanes.unary(|c| shift_signed(c, count));
        })
        .by_immediate(),
    ]);
    macro_rules! variable {
        ($($left:ident $right:ident $signed:ident $t:ty, $i:ty, $element:literal;)*) => {
            rows.extend([$(
                Row::new($left, $element, |lanes| lanes.binary(|b: $t, c| shifted(c, |c| b.checked_shl(c)))),
                Row::new($right, $element, |lanes| lanes.binary(|b: $t, c| shifted(c, |c| b.checked_shr(c)))),
                Row::new($signed, $element, |lanes| {
                    lanes.binary(|b: $t, c| (b as $i >> u32::try_from(c).unwrap_or(u32::MAX).min(<$t>::BITS - 1)) as $t);
                }),
            )*]);
        };
    }
    variable! {
        Vpsllvw Vpsrlvw Vpsravw u16, i16, 2;
        Vpsllvd Vpsrlvd Vpsravd u32, i32, 4;
        Vpsllvq Vpsrlvq Vpsravq u64, i64, 8;
    }
    let mut rotate = |mnemonics: [Mnemonic; 2], element, by_immediate: Kernel, by_source: Kernel| {
        rows.push(Row::new(mnemonics[0], element, by_immediate));
        rows.push(Row::new(mnemonics[1], element, by_source));
    };
    macro_rules! rotates {
        ($($immediate:ident $variable:ident $method:ident $t:ty, $element:literal;)*) => {$(
            rotate(
                [$immediate, $variable],
                $element,
                |lanes| {
                    let count = u32::from(lanes.imm);
                    lanes.unary(|c: $t| c.$method(count % <$t>::BITS));
                },
                |lanes| lanes.binary(|b: $t, c| b.$method((c % <$t>::from(<$t>::BITS as u8)) as u32)),
            );
        )*};
    }
    rotates! {
        Vprold Vprolvd rotate_left u32, 4;
        Vprolq Vprolvq rotate_left u64, 8;
        Vprord Vprorvd rotate_right u32, 4;
        Vprorq Vprorvq rotate_right u64, 8;
    }
}

/// A logical shift by `count`, which `shift` does if it is less than the width; otherwise nothing is left.
fn shifted<T: Default>(count: impl TryInto<u32>, shift: impl Fn(u32) -> Option<T>) -> T {
    count.try_into().ok().and_then(shift).unwrap_or_default()
}

fn shift_signed(value: i64, count: u64) -> i64 {
    value >> count.min(63)
}
