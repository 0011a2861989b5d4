//! Elements become wider or narrower, or close up to their neighbours.

use iced_x86::Mnemonic::*;

use super::form::Row;
use super::lanes::Lanes;
use crate::insn::shuffle::Lane;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    macro_rules! widening {
        ($($zero:ident $sign:ident $from:ty, $signed:ty => $to:ty, $result:ty;)*) => {
            rows.extend([$(
                Row::new($zero, size_of::<$to>() as u8, |lanes| convert(lanes, |c: $from| <$to>::from(c)))
                    .from(size_of::<$from>() as u8),
                Row::new($sign, size_of::<$to>() as u8, |lanes| convert(lanes, |c: $signed| <$result>::from(c)))
                    .from(size_of::<$from>() as u8),
            )*]);
        };
    }
    widening! {
        Vpmovzxbw Vpmovsxbw u8, i8 => u16, i16;
        Vpmovzxbd Vpmovsxbd u8, i8 => u32, i32;
        Vpmovzxbq Vpmovsxbq u8, i8 => u64, i64;
        Vpmovzxwd Vpmovsxwd u16, i16 => u32, i32;
        Vpmovzxwq Vpmovsxwq u16, i16 => u64, i64;
        Vpmovzxdq Vpmovsxdq u32, i32 => u64, i64;
    }
    macro_rules! narrowing {
        ($($truncate:ident $signed:ident $unsigned:ident $from:ty, $source:ty => $to:ty, $result:ty;)*) => {
            rows.extend([$(
                Row::new($truncate, size_of::<$to>() as u8, |lanes| convert(lanes, |c: $from| c as $to))
                    .from(size_of::<$from>() as u8),
                Row::new($signed, size_of::<$to>() as u8, |lanes| {
                    let limits = (<$source>::from(<$result>::MIN), <$source>::from(<$result>::MAX));
                    convert(lanes, |c: $source| c.clamp(limits.0, limits.1) as $result);
                })
                .from(size_of::<$from>() as u8),
                Row::new($unsigned, size_of::<$to>() as u8, |lanes| {
                    convert(lanes, |c: $from| c.min(<$from>::from(<$to>::MAX)) as $to);
                })
                .from(size_of::<$from>() as u8),
            )*]);
        };
    }
    narrowing! {
        Vpmovwb Vpmovswb Vpmovuswb u16, i16 => u8, i8;
        Vpmovdb Vpmovsdb Vpmovusdb u32, i32 => u8, i8;
        Vpmovqb Vpmovsqb Vpmovusqb u64, i64 => u8, i8;
        Vpmovdw Vpmovsdw Vpmovusdw u32, i32 => u16, i16;
        Vpmovqw Vpmovsqw Vpmovusqw u64, i64 => u16, i16;
        Vpmovqd Vpmovsqd Vpmovusqd u64, i64 => u32, i32;
    }
    rows.extend([
        Row::new(Vpcompressd, 4, compress::<u32>).contiguous(),
        Row::new(Vpcompressq, 8, compress::<u64>).contiguous(),
        Row::new(Vcompressps, 4, compress::<u32>).contiguous(),
        Row::new(Vcompresspd, 8, compress::<u64>).contiguous(),
        Row::new(Vpexpandd, 4, expand::<u32>).contiguous(),
        Row::new(Vpexpandq, 8, expand::<u64>).contiguous(),
        Row::new(Vexpandps, 4, expand::<u32>).contiguous(),
        Row::new(Vexpandpd, 8, expand::<u64>).contiguous(),
    ]);
    rows
}

/// Each element of the only source becomes one of another size; what is left of the destination becomes zero.
fn convert<S: Lane, D: Lane>(lanes: &mut Lanes, f: impl Fn(S) -> D) {
    lanes.a.fill(0);
    for i in 0..lanes.bytes / size_of::<S>().max(size_of::<D>()) {
        f(S::get(&lanes.c, i)).put(&mut lanes.a, i);
    }
}

/// The selected elements go to the start of the destination, without gaps; from then on these are the selected ones.
fn compress<T: Lane>(lanes: &mut Lanes) {
    let mut count = 0;
    for i in 0..lanes.count::<T>() {
        if lanes.active >> i & 1 != 0 {
            T::get(&lanes.c, i).put(&mut lanes.a, count);
            count += 1;
        }
    }
    lanes.active = if count == 0 { 0 } else { u64::MAX >> (64 - count) };
}

/// Elements from the start of the source go to the selected places.
fn expand<T: Lane>(lanes: &mut Lanes) {
    let mut count = 0;
    for i in 0..lanes.count::<T>() {
        if lanes.active >> i & 1 != 0 {
            T::get(&lanes.c, count).put(&mut lanes.a, i);
            count += 1;
        }
    }
}
