//! What kind of value an element is, and what is done about it: VFPCLASS, VFIXUPIMM.

use super::format::Format;
use crate::insn::shuffle::Lane;
use crate::insn::vector::Lanes;
use crate::native::sse::{IE, ZE};

/// VFPCLASS: a bit in the opmask where the value is of one of the classes that the immediate names.
pub(in crate::insn) fn fpclass<T: Lane + Into<u64>>(lanes: &mut Lanes) {
    let format = Format::of_size(size_of::<T>());
    for i in 0..lanes.count::<T>() {
        let value = format.flushed(T::get(&lanes.c, i).into(), lanes.mxcsr);
        lanes.out |= u64::from(classes(format, value) & lanes.imm != 0) << i;
    }
}

/// The classes of a value, as the immediate of VFPCLASS has them.
fn classes(format: Format, value: u64) -> u8 {
    let negative = format.is_negative(value);
    if format.is_nan(value) {
        return if format.is_signalling(value) { 1 << 7 } else { 1 };
    }
    if format.is_zero(value) {
        return 1 << (1 + u8::from(negative));
    }
    if format.is_infinite(value) {
        return 1 << (3 + u8::from(negative));
    }
    u8::from(format.is_denormal(value)) << 5 | u8::from(negative) << 6
}

/// The tokens of VFIXUPIMM, which the table has a response to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Quiet,
    Signalling,
    Zero,
    One,
    NegativeInfinity,
    Infinity,
    Negative,
    Positive,
}

impl Token {
    fn of(format: Format, value: u64) -> Token {
        let negative = format.is_negative(value);
        match value {
            _ if format.is_signalling(value) => Token::Signalling,
            _ if format.is_nan(value) => Token::Quiet,
            _ if format.is_zero(value) => Token::Zero,
            _ if value == format.one() => Token::One,
            _ if format.is_infinite(value) && negative => Token::NegativeInfinity,
            _ if format.is_infinite(value) => Token::Infinity,
            _ if negative => Token::Negative,
            _ => Token::Positive,
        }
    }

    /// The exceptions that the immediate wants for it.
    fn flags(self, imm: u8) -> u32 {
        let wants = |bit: u8, flag| if imm >> bit & 1 != 0 { flag } else { 0 };
        match self {
            Token::Zero => wants(0, ZE) | wants(1, IE),
            Token::One => wants(2, ZE) | wants(3, IE),
            Token::Signalling => wants(4, IE),
            Token::NegativeInfinity => wants(5, IE),
            Token::Negative => wants(6, IE),
            Token::Infinity => wants(7, IE),
            Token::Quiet | Token::Positive => 0,
        }
    }
}

/// VFIXUPIMM, packed: the responses are in the last source, of each element those for its own value in the first source.
pub(in crate::insn) fn fixupimm<T: Lane + Into<u64>>(lanes: &mut Lanes) {
    let active = lanes.active;
    for i in (0..lanes.count::<T>()).filter(|i| active >> i & 1 != 0) {
        fix::<T>(lanes, i);
    }
}

/// VFIXUPIMM, scalar.
pub(in crate::insn) fn fixupimm_scalar<T: Lane + Into<u64>>(lanes: &mut Lanes) {
    let size = size_of::<T>();
    if lanes.active & 1 != 0 {
        fix::<T>(lanes, 0);
    }
    let (a, b) = (&mut lanes.a, &lanes.b);
    a[size..].copy_from_slice(&b[size..]);
}

fn fix<T: Lane + Into<u64>>(lanes: &mut Lanes, i: usize) {
    let format = Format::of_size(size_of::<T>());
    let old = T::get(&lanes.a, i).into();
    let value = format.flushed(T::get(&lanes.b, i).into(), lanes.mxcsr);
    let token = Token::of(format, value);
    lanes.raised |= token.flags(lanes.imm);
    let responses = T::get(&lanes.c, i).into();
    let fixed = respond(format, (responses >> (4 * token as u32)) as u8 & 15, old, value);
    let size = size_of::<T>();
    lanes.a[i * size..(i + 1) * size].copy_from_slice(&fixed.to_le_bytes()[..size]);
}

fn respond(format: Format, response: u8, old: u64, value: u64) -> u64 {
    let sign = format.sign();
    let double = |bits: f64| match format {
        Format::SINGLE => (bits as f32).to_bits().into(),
        _ => bits.to_bits(),
    };
    match response {
        0 => old,
        1 => value,
        2 => value | format.infinity() | format.quiet(),
        3 => format.indefinite(),
        4 => sign | format.infinity(),
        5 => format.infinity(),
        6 => value & sign | format.infinity(),
        7 => sign,
        8 => 0,
        9 => sign | format.one(),
        10 => format.one(),
        11 => double(0.5),
        12 => double(90.0),
        13 => double(core::f64::consts::FRAC_PI_2),
        14 => format.infinity() - 1,
        _ => sign | (format.infinity() - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINGLES: [u64; 9] = [
        0x7fc0_0000,
        0,
        0x8000_0000,
        0x7f80_0000,
        0xff80_0000,
        1,
        0xbf80_0000,
        0xff80_0001,
        0x3f80_0001,
    ];

    #[test]
    fn each_class_has_its_bit() {
        let of = SINGLES.map(|value| classes(Format::SINGLE, value));
        assert_eq!(of, [1, 2, 4, 8, 16, 32, 64, 128, 0]);
        assert_eq!(classes(Format::SINGLE, 0x8000_0001), 32 | 64);
        assert_eq!(classes(Format::DOUBLE, 0x7ff0_0000_0000_0001), 128);
    }

    #[test]
    fn each_token_has_its_number() {
        let of = SINGLES.map(|value| Token::of(Format::SINGLE, value) as u8);
        assert_eq!(of, [0, 2, 2, 5, 4, 7, 6, 1, 7]);
        assert_eq!(Token::of(Format::SINGLE, 0x3f80_0000), Token::One);
        assert_eq!(Token::of(Format::DOUBLE, 0x3f80_0000), Token::Positive);
    }

    #[test]
    fn the_immediate_says_which_tokens_are_exceptions() {
        let of = |token: Token| core::array::from_fn(|bit| token.flags(1 << bit));
        assert_eq!(of(Token::Zero), [ZE, IE, 0, 0, 0, 0, 0, 0]);
        assert_eq!(of(Token::One), [0, 0, ZE, IE, 0, 0, 0, 0]);
        assert_eq!(of(Token::Signalling), [0, 0, 0, 0, IE, 0, 0, 0]);
        assert_eq!(of(Token::NegativeInfinity), [0, 0, 0, 0, 0, IE, 0, 0]);
        assert_eq!(of(Token::Negative), [0, 0, 0, 0, 0, 0, IE, 0]);
        assert_eq!(of(Token::Infinity), [0, 0, 0, 0, 0, 0, 0, IE]);
        assert_eq!(Token::Quiet.flags(0xff) | Token::Positive.flags(0xff), 0);
    }

    #[test]
    fn the_table_says_what_comes_of_a_token() {
        let of = |response| respond(Format::DOUBLE, response, 7, (-3.0_f64).to_bits());
        let values = [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15].map(|response| f64::from_bits(of(response)));
        assert_eq!(
            values,
            [
                f64::NEG_INFINITY,
                f64::INFINITY,
                f64::NEG_INFINITY,
                -0.0,
                0.0,
                -1.0,
                1.0,
                0.5,
                90.0,
                core::f64::consts::FRAC_PI_2,
                f64::MAX,
                f64::MIN
            ]
        );
        assert!(of(7) != 0 && of(8) == 0);
        assert_eq!((of(0), of(1)), (7, (-3.0_f64).to_bits()));
        assert_eq!(of(2), 0xfff8_0000_0000_0000 | (-3.0_f64).to_bits());
        assert_eq!(of(3), 0xfff8_0000_0000_0000);
        assert_eq!(respond(Format::SINGLE, 13, 0, 0), 0x3fc9_0fdb);
    }
}
