//! Fetches operands, lets a kernel compute, and writes the result: the same for all instructions of a shape.

use iced_x86::Code;

use super::form::{self, Fetch, Form, Merge, Place, ones};
use super::lanes::{Bytes, Lanes, to_bytes, to_vector};
use crate::access::{Access, Linear, Outcome, Stop};
use crate::cpu::{CONTEXT_USER, Cpu, Seg};
use crate::event::Exception;
use crate::insn::available;
use crate::insn::shuffle::Lane;
use crate::insn::sse_float::exceptions;
use crate::native::sse::MASKS;
use crate::op::Op;
use crate::operand::{Use, check, effective_address, is_aligned};
use crate::table::Table;

/// Adds an encoding that has a form.
pub(super) fn add<M: Access>(table: &mut Table<M>, code: Code, number: u16) {
    let memory = if form::form(usize::from(number)).stores {
        store
    } else {
        load
    };
    table.numbered(code, number, registers, memory);
}

/// All operands in registers.
fn registers<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let form = form::form(op.form());
    let mut lanes = begin(cpu, form, op)?;
    let mxcsr = &mut lanes.mxcsr;
    let silent = form.is_evex && op.is_broadcast();
    if silent {
        *mxcsr |= MASKS;
        if let Some(rounding) = op.rounding() {
            *mxcsr = *mxcsr & !ROUNDING | u32::from(rounding) << ROUNDING.trailing_zeros();
        }
    }
    let number = match (form.target, form.sources) {
        (Place::Flags, _) => {
            lanes.b = vector(cpu, op.r1);
            op.r2
        }
        (_, 1) => op.r2,
        (_, sources) => {
            lanes.b = vector(cpu, op.r2);
            if sources == 3 {
                lanes.d = vector(cpu, op.r4());
            }
            op.r3()
        }
    };
    lanes.c = register(cpu, form, number);
    compute(cpu, form, &mut lanes, silent)?;
    write(cpu, form, op.r1, op.opmask() != 0, op.is_zeroing(), &mut lanes);
    Ok(())
}

/// The last source in memory.
fn load<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let form = form::form(op.form());
    let mut lanes = begin(cpu, form, op)?;
    match (form.target, form.sources) {
        (Place::Flags, _) => lanes.b = vector(cpu, op.r1),
        (_, 1) => {}
        (_, sources) => {
            lanes.b = vector(cpu, op.r2);
            if sources == 3 {
                lanes.d = vector(cpu, op.r4());
            }
        }
    }
    lanes.c = fetch(cpu, m, form, op, lanes.active)?;
    compute(cpu, form, &mut lanes, false)?;
    write(cpu, form, op.r1, op.opmask() != 0, op.is_zeroing(), &mut lanes);
    Ok(())
}

/// The destination in memory.
fn store<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let form = form::form(op.form());
    let mut lanes = begin(cpu, form, op)?;
    lanes.c = register(cpu, form, op.r1);
    check_alignment(cpu, form, op)?;
    (form.kernel)(&mut lanes);
    let (size, selected) = match form.fetch {
        Fetch::Contiguous => {
            let count = lanes.active.count_ones() as usize;
            (count * form.element, lanes.active)
        }
        _ if op.opmask() == 0 => (form.memory, lanes.active),
        fetch => {
            let checked = if fetch == Fetch::Whole {
                form.all()
            } else {
                lanes.active
            };
            check_selected(cpu, m, op, checked, form.element, Use::Write)?;
            raise(cpu, &lanes)?;
            return store_selected(cpu, m, op, lanes.active, form.element, &lanes.a);
        }
    };
    if size == 0 || selected == 0 {
        return raise(cpu, &lanes);
    }
    let at = Part { start: 0, length: size }.at(cpu, op, Use::Write)?;
    if lanes.raised != 0 {
        m.check_write(cpu, at, size as u64)?;
        raise(cpu, &lanes)?;
    }
    m.store_bytes(cpu, at, &lanes.a[..size])
}

/// Rounding control, in MXCSR.
const ROUNDING: u32 = 3 << 13;

/// Checks that the instruction may run, and takes what does not depend on where the operands are.
#[inline(always)]
fn begin<M>(cpu: &Cpu, form: &Form, op: &Op<M>) -> Result<Lanes, Stop> {
    if form.is_evex {
        available::avx512(cpu)?;
    } else {
        available::avx(cpu)?;
    }
    let active = match op.opmask() {
        0 => form.all(),
        opmask => cpu.fpu.k[usize::from(opmask)] & form.all(),
    };
    Ok(Lanes {
        a: vector(cpu, op.r1),
        b: [0; 64],
        c: [0; 64],
        d: [0; 64],
        imm: op.imm8(),
        bytes: form.bytes,
        active,
        general: form.general,
        out: 0,
        mxcsr: cpu.fpu.mxcsr,
        raised: 0,
    })
}

#[inline(always)]
fn vector(cpu: &Cpu, register: u8) -> Bytes {
    to_bytes(&cpu.fpu.vectors[usize::from(register & 31)])
}

/// The last source, in a register.
#[inline(always)]
fn register(cpu: &Cpu, form: &Form, number: u8) -> Bytes {
    let mut bytes = [0; 64];
    match form.source {
        Place::Vector | Place::Flags => return vector(cpu, number),
        Place::Opmask => cpu.fpu.k[usize::from(number & 7)].put(&mut bytes, 0),
        Place::General => (cpu.gpr.get(number) & ones(8 * form.general)).put(&mut bytes, 0),
    }
    bytes
}

/// Computes and raises floating-point exceptions.
#[inline(always)]
fn compute(cpu: &mut Cpu, form: &Form, lanes: &mut Lanes, silent: bool) -> Outcome {
    (form.kernel)(lanes);
    if silent {
        return Ok(());
    }
    raise(cpu, lanes)
}

#[inline(always)]
fn raise(cpu: &mut Cpu, lanes: &Lanes) -> Outcome {
    if lanes.raised == 0 {
        return Ok(());
    }
    exceptions::raise(cpu, lanes.raised)
}

/// Writes the result to a register.
#[inline(always)]
fn write(cpu: &mut Cpu, form: &Form, number: u8, masked: bool, zeroing: bool, lanes: &mut Lanes) {
    match form.target {
        Place::Vector => {
            let register = &mut cpu.fpu.vectors[usize::from(number & 31)];
            if masked {
                let old = match form.merge {
                    _ if zeroing => [0; 64],
                    Merge::Destination => to_bytes(register),
                    Merge::First => lanes.b,
                };
                merge(lanes, &old, form);
            }
            // What a store would write is all that there is of a destination that can be in memory.
            let size = if form.stores { form.memory.max(16) } else { form.bytes };
            lanes.a[size..].fill(0);
            *register = to_vector(&lanes.a);
        }
        Place::Opmask => cpu.fpu.k[usize::from(number & 7)] = lanes.out & lanes.active,
        Place::General => cpu.gpr.set(number, u64::get(&lanes.a, 0) & ones(8 * lanes.general)),
        Place::Flags => cpu.flags.set_status(lanes.out),
    }
}

/// Elements that are not selected stay as they were.
fn merge(lanes: &mut Lanes, old: &Bytes, form: &Form) {
    for i in (0..form.count).filter(|i| lanes.active >> i & 1 == 0) {
        let element = i * form.element..(i + 1) * form.element;
        lanes.a[element.clone()].copy_from_slice(&old[element]);
    }
}

/// #GP(0) if the memory operand must be aligned and is not, whatever is selected of it. Its other faults are those of what is
/// selected.
#[inline(always)]
fn check_alignment<M>(cpu: &Cpu, form: &Form, op: &Op<M>) -> Outcome {
    if form.is_aligned && !is_aligned(cpu, op, form.memory as u64) {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

/// The last source, in memory.
#[inline(always)]
fn fetch<M: Access>(cpu: &Cpu, m: &mut M, form: &Form, op: &Op<M>, active: u64) -> Result<Bytes, Stop> {
    check_alignment(cpu, form, op)?;
    let mut bytes = [0; 64];
    let size = match form.fetch {
        Fetch::Contiguous => active.count_ones() as usize * form.element,
        _ if form.is_evex && op.is_broadcast() => form.broadcast,
        _ => form.memory,
    };
    if op.opmask() == 0 || form.fetch == Fetch::Whole {
        let at = Part { start: 0, length: size }.at(cpu, op, Use::Read)?;
        m.load_bytes(cpu, at, &mut bytes[..size])?;
    } else {
        let elements = size / form.memory_element;
        let wanted = match form.fetch {
            Fetch::Contiguous if elements == 0 => 0,
            Fetch::Contiguous => ones(elements),
            _ => fold(active, form.count, elements),
        };
        fetch_selected(cpu, m, op, wanted, form.memory_element, &mut bytes)?;
    }
    if form.is_evex && op.is_broadcast() {
        for i in 1..form.bytes / size {
            bytes.copy_within(..size, i * size);
        }
    }
    Ok(bytes)
}

/// Of elements that repeat after `elements`, those that any of the selected ones comes from.
fn fold(active: u64, count: usize, elements: usize) -> u64 {
    if elements >= count {
        return active;
    }
    let mut wanted = 0;
    for start in (0..count).step_by(elements.max(1)) {
        wanted |= active >> start;
    }
    wanted & ones(elements)
}

/// Does something that ignores alignment.
pub(super) fn without_alignment_check<R>(cpu: &mut Cpu, f: impl FnOnce(&Cpu) -> R) -> R {
    if !cpu.view.checks_alignment() {
        return f(cpu);
    }
    let context = core::mem::replace(&mut cpu.view.context, CONTEXT_USER);
    let result = f(cpu);
    cpu.view.context = context;
    result
}

/// Checks every page that the selected elements are in. Of neighbours that are not all within the limit, each is looked at by
/// itself, as on the modelled processor.
pub(super) fn check_selected<M: Access>(
    cpu: &Cpu,
    m: &mut M,
    op: &Op<M>,
    selected: u64,
    element: usize,
    usage: Use,
) -> Outcome {
    for part in Runs::new(selected, element) {
        match part.at(cpu, op, usage) {
            Ok(at) => check(cpu, m, at, part.length as u64, usage)?,
            Err(beyond) => {
                for start in part.range().step_by(element) {
                    let at = Part { start, length: element }.at(cpu, op, usage)?;
                    check(cpu, m, at, element as u64, usage)?;
                }
                return Err(beyond);
            }
        }
    }
    Ok(())
}

/// Reads the selected elements, having checked all of them before the first: a device is not asked in vain.
pub(super) fn fetch_selected<M: Access>(
    cpu: &Cpu,
    m: &mut M,
    op: &Op<M>,
    selected: u64,
    element: usize,
    bytes: &mut Bytes,
) -> Outcome {
    check_selected(cpu, m, op, selected, element, Use::Read)?;
    for part in Runs::new(selected, element) {
        let at = part.at(cpu, op, Use::Read)?;
        m.load_bytes(cpu, at, &mut bytes[part.range()])?;
    }
    Ok(())
}

/// Stores the selected elements, which have been checked. If a page has gone meanwhile, the fast way gives up, and the same
/// is stored again from the start.
pub(super) fn store_selected<M: Access>(
    cpu: &Cpu,
    m: &mut M,
    op: &Op<M>,
    selected: u64,
    element: usize,
    bytes: &Bytes,
) -> Outcome {
    for part in Runs::new(selected, element) {
        let at = part.at(cpu, op, Use::Write)?;
        m.store_bytes(cpu, at, &bytes[part.range()])?;
    }
    Ok(())
}

/// Bytes of an operand without gaps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub start: usize,
    pub length: usize,
}

impl Part {
    pub fn range(self) -> core::ops::Range<usize> {
        self.start..self.start + self.length
    }

    /// Where they are in memory. Elements wrap around with the address size, as the processor at hand has it for VMASKMOV.
    pub fn at<M>(self, cpu: &Cpu, op: &Op<M>, usage: Use) -> Result<Linear, Stop> {
        let offset = effective_address(cpu, op).wrapping_add(self.start as u64) & op.attr.address_mask();
        cpu.linear(Seg::from_number(op.seg()), offset, self.length as u64, usage)
    }
}

/// The selected elements of an operand; neighbours together.
pub(super) struct Runs {
    left: u64,
    element: usize,
    passed: usize,
}

impl Runs {
    pub fn new(selected: u64, element: usize) -> Runs {
        Runs {
            left: selected,
            element,
            passed: 0,
        }
    }
}

impl Iterator for Runs {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.left == 0 {
            return None;
        }
        let gap = self.left.trailing_zeros() as usize;
        self.left >>= gap;
        let length = self.left.trailing_ones() as usize;
        self.left = self.left.checked_shr(length as u32).unwrap_or(0);
        let start = self.passed + gap;
        self.passed = start + length;
        Some(Part {
            start: start * self.element,
            length: length * self.element,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_elements_are_one_access() {
        let runs = |selected| -> Vec<_> { Runs::new(selected, 4).map(|part| (part.start, part.length)).collect() };
        assert_eq!(runs(0), []);
        assert_eq!(runs(0b1101_1000), [(12, 8), (24, 8)]);
        assert_eq!(runs(u64::MAX), [(0, 256)]);
        assert_eq!(runs(1 << 63), [(252, 4)]);
    }

    #[test]
    fn an_element_in_memory_is_wanted_if_any_that_comes_from_it_is_selected() {
        assert_eq!(fold(0b1000_0000_0000_0010, 16, 4), 0b1010);
        assert_eq!(fold(0b10, 16, 1), 1);
        assert_eq!(fold(0, 16, 1), 0);
        assert_eq!(fold(0b1001, 4, 4), 0b1001);
    }
}
