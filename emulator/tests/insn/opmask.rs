//! Instructions on opmask registers, and what only software of AVX-512 has: VPCONFLICT and VPBROADCASTM (SDM Vol. 2). No
//! processor at hand has them.

use reprise_emulator::Cpu;
use reprise_emulator::cpu::flags::{CF, OF, STATUS, ZF};
use reprise_emulator::cpu::{Cr4, gpr};

use crate::world::{Way, World, long_mode};

const K2: u64 = 0xfedc_ba98_8765_43f0;
const K3: u64 = 0x0f0f_3333_aaaa_55ff;

/// With [`K2`] and [`K3`] in their registers, and ones in k1.
fn start() -> Cpu {
    let mut cpu = long_mode();
    cpu.cr4.0 |= Cr4::OSXSAVE;
    cpu.xcr0 = 0xe7;
    [cpu.fpu.k[1], cpu.fpu.k[2], cpu.fpu.k[3]] = [u64::MAX, K2, K3];
    cpu.refresh();
    cpu
}

fn run(code: &[u8], cpu: &Cpu) -> Cpu {
    let [end, other] = [Way::Fast, Way::Careful].map(|way| {
        let end = World::new(cpu).run(code, cpu, way, false);
        assert_eq!(end.fault, None, "{code:x?}");
        end.cpu
    });
    assert_eq!(
        (&end.fpu, &end.gpr),
        (&other.fpu, &other.gpr),
        "{code:x?}: the careful way"
    );
    end
}

/// What is in k1 after instructions on it, k2 and k3.
macro_rules! opmasks {
    ($($text:literal => $expected:expr;)*) => {$(
        assert_eq!(run(code!($text), &start()).fpu.k[1], $expected, $text);
    )*};
}

#[test]
fn logic_and_addition_clear_what_lies_above_their_width() {
    opmasks! {
        "kandb k1, k2, k3" => K2 & K3 & 0xff;
        "kandw k1, k2, k3" => K2 & K3 & 0xffff;
        "kandd k1, k2, k3" => K2 & K3 & 0xffff_ffff;
        "kandq k1, k2, k3" => K2 & K3;
        "kandnb k1, k2, k3" => !K2 & K3 & 0xff;
        "kandnw k1, k2, k3" => !K2 & K3 & 0xffff;
        "kandnd k1, k2, k3" => !K2 & K3 & 0xffff_ffff;
        "kandnq k1, k2, k3" => !K2 & K3;
        "korb k1, k2, k3" => (K2 | K3) & 0xff;
        "korw k1, k2, k3" => (K2 | K3) & 0xffff;
        "kord k1, k2, k3" => (K2 | K3) & 0xffff_ffff;
        "korq k1, k2, k3" => K2 | K3;
        "kxorb k1, k2, k3" => (K2 ^ K3) & 0xff;
        "kxorw k1, k2, k3" => (K2 ^ K3) & 0xffff;
        "kxord k1, k2, k3" => (K2 ^ K3) & 0xffff_ffff;
        "kxorq k1, k2, k3" => K2 ^ K3;
        "kxnorb k1, k2, k3" => !(K2 ^ K3) & 0xff;
        "kxnorw k1, k2, k3" => !(K2 ^ K3) & 0xffff;
        "kxnord k1, k2, k3" => !(K2 ^ K3) & 0xffff_ffff;
        "kxnorq k1, k2, k3" => !(K2 ^ K3);
        "knotb k1, k2" => !K2 & 0xff;
        "knotw k1, k2" => !K2 & 0xffff;
        "knotd k1, k2" => !K2 & 0xffff_ffff;
        "knotq k1, k2" => !K2;
        "kaddb k1, k2, k3" => 0xef;
        "kaddw k1, k2, k3" => 0x99ef;
        "kaddd k1, k2, k3" => 0x320f_99ef;
        "kaddq k1, k2, k3" => K2.wrapping_add(K3);
    }
}

#[test]
fn halves_are_put_together_the_first_operand_above() {
    opmasks! {
        "kunpckbw k1, k2, k3" => 0xf0ff;
        "kunpckwd k1, k2, k3" => 0x43f0_55ff;
        "kunpckdq k1, k2, k3" => 0x8765_43f0_aaaa_55ff;
    }
}

#[test]
fn shifts_by_the_width_or_more_leave_nothing() {
    opmasks! {
        "kshiftlb k1, k2, 1" => 0xe0;
        "kshiftlw k1, k2, 4" => 0x3f00;
        "kshiftld k1, k2, 31" => 0;
        "kshiftlq k1, k2, 60" => 0;
        "kshiftlq k1, k3, 60" => 0xf << 60;
        "kshiftrb k1, k2, 7" => 1;
        "kshiftrw k1, k2, 15" => 0;
        "kshiftrd k1, k2, 28" => 8;
        "kshiftrq k1, k2, 60" => 0xf;
        "kshiftlb k1, k2, 8" => 0;
        "kshiftrw k1, k3, 16" => 0;
        "kshiftrq k1, k3, 64" => 0;
        "kshiftlq k1, k3, 255" => 0;
    }
}

/// The status flags after instructions on k1 to k4, k1 and k4 being as given.
macro_rules! tests {
    ($($k1:expr, $k4:expr, $text:literal => $expected:expr;)*) => {$({
        let mut cpu = start();
        [cpu.fpu.k[1], cpu.fpu.k[4]] = [$k1, $k4];
        cpu.flags.set_bits(STATUS);
        assert_eq!(run(code!($text), &cpu).flags.status(), $expected, $text);
    })*};
}

#[test]
fn tests_tell_none_and_all_and_clear_the_other_flags() {
    assert_ne!(STATUS & OF, 0);
    tests! {
        0x100, 0, "kortestb k1, k4" => ZF;
        0xf0, 0x0f, "kortestb k1, k4" => CF;
        0xf0, 0x07, "kortestb k1, k4" => 0;
        0x1_0000, 0, "kortestw k1, k4" => ZF;
        0xffff_0000, 0xffff, "kortestd k1, k4" => CF;
        1 << 63, 0, "kortestq k1, k4" => 0;
        0x0f, 0xf0, "ktestb k1, k4" => ZF;
        0xff, 0x0f, "ktestb k1, k4" => CF;
        0x0f, 0x18, "ktestb k1, k4" => 0;
        0x1_0000, 0x1_0000, "ktestw k1, k4" => ZF | CF;
        0x1_0000, 0x1_0000, "ktestd k1, k4" => CF;
        1 << 63, 1, "ktestq k1, k4" => ZF;
    }
}

#[test]
fn moves_take_their_width_and_clear_the_rest() {
    opmasks! {
        "kmovb k1, k2" => 0xf0;
        "kmovw k1, k2" => 0x43f0;
        "kmovd k1, k2" => 0x8765_43f0;
        "kmovq k1, k2" => K2;
    }
    let mut cpu = start();
    cpu.gpr.set(gpr::RAX, u64::MAX);
    assert_eq!(run(code!("kmovb k1, eax"), &cpu).fpu.k[1], 0xff);
    assert_eq!(run(code!("kmovd k1, eax"), &cpu).fpu.k[1], 0xffff_ffff);
    assert_eq!(run(code!("kmovw eax, k2"), &cpu).gpr.get(gpr::RAX), 0x43f0);
    assert_eq!(run(code!("kmovq rax, k2"), &cpu).gpr.get(gpr::RAX), K2);
}

/// A vector of the doublewords or quadwords.
fn vector(elements: impl IntoIterator<Item = u64>, bits: u32) -> [u64; 8] {
    let mut vector = [0; 8];
    for (i, element) in elements.into_iter().enumerate() {
        let bit = i * bits as usize;
        vector[bit / 64] |= element << (bit % 64);
    }
    vector
}

#[test]
fn vpconflict_tells_which_elements_before_it_are_equal() {
    let mut cpu = start();
    cpu.fpu.vectors[2] = vector([7, 7, 0, 7, 5, 0, 7, 5, 1, 2, 3, 4, 6, 8, 9, 7], 32);
    let expected = [
        0, 1, 0, 0b11, 0, 0b100, 0b1011, 0b1_0000, 0, 0, 0, 0, 0, 0, 0, 0b100_1011,
    ];
    // vpconflictd zmm1, zmm2
    let end = run(&[0x62, 0xf2, 0x7d, 0x48, 0xc4, 0xca], &cpu);
    assert_eq!(end.fpu.vectors[1], vector(expected, 32));
    cpu.fpu.vectors[2] = [3, 1 << 32, 3, 3, 1 << 32, 0, 1 << 32, 3];
    // vpconflictq zmm1, zmm2
    let end = run(&[0x62, 0xf2, 0xfd, 0x48, 0xc4, 0xca], &cpu);
    assert_eq!(end.fpu.vectors[1], [0, 0, 1, 0b101, 0b10, 0, 0b1_0010, 0b1101]);
}

#[test]
fn vpconflict_compares_with_elements_that_are_not_selected_too() {
    let mut cpu = start();
    cpu.fpu.k[1] = 0b1000;
    cpu.fpu.vectors[1] = [u64::MAX; 8];
    cpu.fpu.vectors[2] = [9; 8];
    // vpconflictq ymm1{k1}, ymm2
    let end = run(&[0x62, 0xf2, 0xfd, 0x29, 0xc4, 0xca], &cpu);
    assert_eq!(end.fpu.vectors[1], [u64::MAX, u64::MAX, u64::MAX, 0b111, 0, 0, 0, 0]);
}

#[test]
fn vpbroadcastm_spreads_the_low_bits_of_an_opmask() {
    // vpbroadcastmb2q zmm1, k2
    let end = run(&[0x62, 0xf2, 0xfe, 0x48, 0x2a, 0xca], &start());
    assert_eq!(end.fpu.vectors[1], [0xf0; 8]);
    // vpbroadcastmw2d xmm1, k2
    let end = run(&[0x62, 0xf2, 0x7e, 0x08, 0x3a, 0xca], &start());
    assert_eq!(
        end.fpu.vectors[1],
        [0x43f0_0000_43f0, 0x43f0_0000_43f0, 0, 0, 0, 0, 0, 0]
    );
}
