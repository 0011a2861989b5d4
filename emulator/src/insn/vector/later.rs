//! The VEX and EVEX forms of what SSSE3, SSE4.1, SSE4.2, AES, PCLMULQDQ and GFNI brought: their operations, 16 bytes at a
//! time.

use iced_x86::Mnemonic::*;

use super::form::Row;
use super::kernel::immediate;
use super::lanes::Lanes;
use crate::insn::shuffle::PackedImmediate;
use crate::insn::{aes, clmul, gfni, sse41, ssse3};

pub(super) fn rows() -> Vec<Row> {
    macro_rules! rows {
        ($($from:ident $element:literal: $($mnemonic:ident $op:ident,)*;)*) => {
            vec![$($(Row::new($mnemonic, $element, immediate::<$from::$op>),)*)*]
        };
    }
    let elementwise = rows! {
        ssse3 1: Vpsignb Psignb, Vpabsb Pabsb,;
        ssse3 2: Vphaddw Phaddw, Vphaddsw Phaddsw, Vphsubw Phsubw, Vphsubsw Phsubsw, Vpsignw Psignw, Vpabsw Pabsw,
            Vpmulhrsw Pmulhrsw,;
        ssse3 4: Vphaddd Phaddd, Vphsubd Phsubd, Vpsignd Psignd, Vpabsd Pabsd,;
        sse41 1: Vpminsb Pminsb, Vpmaxsb Pmaxsb,;
        sse41 2: Vpminuw Pminuw, Vpmaxuw Pmaxuw, Vphminposuw Phminposuw,;
        sse41 4: Vpminsd Pminsd, Vpmaxsd Pmaxsd, Vpminud Pminud, Vpmaxud Pmaxud, Vpmulld Pmulld,;
        sse41 8: Vpmuldq Pmuldq,;
        aes 1: Vaesenc Aesenc, Vaesenclast Aesenclast, Vaesdec Aesdec, Vaesdeclast Aesdeclast, Vaesimc Aesimc,
            Vaeskeygenassist Aeskeygenassist,;
        clmul 8: Vpclmulqdq Pclmulqdq,;
        gfni 1: Vgf2p8mulb Gf2p8mulb,;
    };
    let across = rows! {
        ssse3 1: Vpshufb Pshufb, Vpalignr Palignr,;
        ssse3 2: Vpmaddubsw Pmaddubsw,;
        sse41 2: Vpackusdw Packusdw,;
        gfni 1: Vgf2p8affineqb Gf2p8affineqb, Vgf2p8affineinvqb Gf2p8affineinvqb,;
    };
    // What is selected in the destination says nothing of what is read.
    let across = across.into_iter().map(Row::whole);
    elementwise
        .into_iter()
        .chain(across)
        .chain([Row::new(Vmpsadbw, 2, sums_of_differences)])
        .collect()
}

/// VMPSADBW: the second 16 bytes have three bits of the immediate of their own.
fn sums_of_differences(lanes: &mut Lanes) {
    let imm = lanes.imm;
    lanes.chunks(|i, b, c| sse41::Mpsadbw::apply(b, c, imm >> (3 * i)));
}
