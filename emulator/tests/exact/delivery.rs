//! Random guest state into which an event is delivered: gates of every kind, descriptors, task state and stacks of any kind.

use reprise_emulator::cpu::{Cr0, Seg, flags, gpr};
use reprise_emulator::event::Source;
use reprise_emulator::{Cpu, Event};

use crate::dice::Dice;
use crate::layout::*;
use crate::scene::Scene;

/// What gates and task states name.
const SELECTORS: [u16; 12] = [
    0,
    CODE0,
    DATA0,
    CODE3,
    DATA3,
    FREE_TASK,
    OTHER_TASK,
    LOCAL,
    GATE,
    FRESH_CODE,
    FRESH_DATA,
    FRESH_CODE3,
];

fn selector(dice: &mut Dice) -> u16 {
    match dice.below(8) {
        0 => dice.word() as u16,
        1 => dice.choose(&SELECTORS) ^ dice.below(8) as u16,
        _ => dice.choose(&SELECTORS),
    }
}

/// An address that is mostly one in a region, near a page boundary or not.
fn pointer(dice: &mut Dice, mode: Mode) -> u64 {
    if dice.one_in(6) {
        return dice.number();
    }
    let region = dice.choose(&[CODE, HANDLERS, KERNEL, STACK, M, D]);
    let base = if mode.is_8086() { gpa(mode, region) } else { region };
    base + dice.choose(&[0, 0x100, 0x800, PAGE - 16, PAGE]) + dice.below(32) as u64
}

/// The mode in which the scene's tables are laid out; none in real mode, which has no gates.
fn mode(cpu: &Cpu) -> Option<Mode> {
    match () {
        () if cpu.flags.any(flags::VM) => Some(Mode::Virtual8086),
        () if cpu.view.is_ia32e() => Some(Mode::Long),
        () if cpu.cr0.any(Cr0::PE) => Some(Mode::Protected),
        () => None,
    }
}

/// Arranges an event and what it meets.
pub fn arrange(dice: &mut Dice, scene: &mut Scene) {
    let event = event(dice);
    let Some(mode) = mode(&scene.cpu) else {
        scene.cpu.event = Some(event);
        return;
    };
    let mut image = Image(std::mem::take(&mut scene.image));
    for vector in [event.vector, 8, 10, 11, 12, 13, 14] {
        if vector == event.vector || dice.one_in(3) {
            gate(dice, &mut image, mode, u64::from(vector));
        }
    }
    for _ in 0..dice.below(4) {
        let at = GDT + u64::from(dice.choose(&SELECTORS) & !7);
        let byte = if dice.one_in(2) { 5 } else { dice.below(8) as u64 };
        image.at(mode, at + byte, &[dice.byte()]);
    }
    for _ in 0..dice.below(6) {
        let at = dice.choose(&[TSS, OTHER_TSS]) + dice.below(0x68) as u64;
        match dice.below(3) {
            0 => image.at(mode, at & !3, &selector(dice).to_le_bytes()),
            1 => image.at(mode, at & !3, &pointer(dice, mode).to_le_bytes()),
            _ => image.at(mode, at, &[dice.byte()]),
        }
    }
    scene.image = image.0;
    let cpu = &mut scene.cpu;
    if dice.one_in(3) {
        // A 16-bit task state, or none that is busy.
        cpu.tr.attributes.0 ^= dice.choose(&[8, 2, 0x80, 1]);
    }
    if dice.one_in(4) {
        cpu.tr.limit = dice.below(0x80) as u32;
    }
    if dice.one_in(3) {
        let seg = dice.choose(&[Seg::Ss, Seg::Cs]);
        cpu.segments[seg].attributes.0 ^= dice.choose(&[1 << 2, 1 << 3, 1 << 14, 1 << 15, 1 << 7]);
    }
    if dice.one_in(3) {
        cpu.gpr.set(gpr::RSP, pointer(dice, mode));
    }
    cpu.event = Some(event);
}

/// A gate of any kind to anywhere.
fn gate(dice: &mut Dice, image: &mut Image, mode: Mode, vector: u64) {
    let kinds = [5, 6, 7, 14, 15, 14, 15, 5, 4, 12];
    let kind = match dice.below(8) {
        0 => u64::from(dice.byte()),
        _ => dice.choose(&kinds) | (dice.below(4) as u64) << 5 | u64::from(!dice.one_in(8)) << 7,
    };
    let offset = pointer(dice, mode);
    let low = offset & 0xffff
        | u64::from(selector(dice)) << 16
        | (dice.below(8) as u64 & u64::from(mode.is_long()) * 7) << 32
        | kind << 40
        | (offset >> 16 & 0xffff) << 48;
    let size = if mode.is_long() { 16 } else { 8 };
    // The table of the 16- and 32-bit modes ends with vector 255.
    image.at(mode, IDT + vector * size, &low.to_le_bytes());
    if mode.is_long() && dice.one_in(4) {
        image.at(mode, IDT + vector * size + 8, &(offset >> 32).to_le_bytes());
    }
}

/// An event from any source.
fn event(dice: &mut Dice) -> Event {
    let exceptions = [0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19];
    match dice.below(6) {
        0 => Event::nmi(),
        1 => Event::external(dice.byte()),
        2 => Event {
            source: Source::Software,
            length: dice.below(3) as u8,
            ..Event::external(dice.byte())
        },
        _ => {
            let vector = dice.choose(&exceptions);
            let has_code = matches!(vector, 8 | 10..=14 | 17);
            Event {
                vector,
                source: Source::Fault,
                error_code: has_code.then(|| dice.word() as u16 & 0x7ff8),
                cr2: (vector == 14).then(|| pointer(dice, Mode::Long)),
                length: 0,
            }
        }
    }
}
