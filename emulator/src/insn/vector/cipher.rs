//! AES, products of polynomials and Galois fields, 16 bytes at a time.

use iced_x86::Mnemonic::*;

use super::form::Row;
use super::kernel::immediate;
use crate::insn::{aes, clmul, gfni};

pub(super) fn rows() -> Vec<Row> {
    macro_rules! rows {
        ($($from:ident $element:literal: $($mnemonic:ident $op:ident,)*;)*) => {
            vec![$($(Row::new($mnemonic, $element, immediate::<$from::$op>),)*)*]
        };
    }
    let mut rows = rows! {
        aes 1: Vaesenc Aesenc, Vaesenclast Aesenclast, Vaesdec Aesdec, Vaesdeclast Aesdeclast, Vaesimc Aesimc,
            Vaeskeygenassist Aeskeygenassist,;
        clmul 8: Vpclmulqdq Pclmulqdq,;
        gfni 1: Vgf2p8mulb Gf2p8mulb,;
    };
    let matrices = rows! {
        gfni 1: Vgf2p8affineqb Gf2p8affineqb, Vgf2p8affineinvqb Gf2p8affineinvqb,;
    };
    // Which bytes are selected in the destination says nothing of what is read of the matrices.
    rows.extend(matrices.into_iter().map(Row::whole));
    rows
}
