//! Gathers and scatters: elements whose addresses are a vector's elements.
//!
//! Elements are read or written from the first on. If one faults, those before it are done and their mask is cleared (SDM
//! Vol. 2, VPGATHERDD): executed again, the instruction begins with the element that faulted. Alignment is not checked, as
//! on the modelled processor.

use std::sync::LazyLock;

use iced_x86::{Code, EncodingKind, Mnemonic, OpCodeOperandKind};

use super::form::ones;
use super::lanes::{Bytes, to_bytes, to_vector};
use super::shell::without_alignment_check;
use crate::access::{Access, Linear, Outcome, Stop};
use crate::careful::Careful;
use crate::cpu::{Cpu, Seg, flags};
use crate::debug;
use crate::insn::shuffle::Lane;
use crate::insn::{available, unreachable_form};
use crate::op::Op;
use crate::operand::{Use, effective_address};
use crate::table::Table;

/// An encoding.
#[derive(Debug, Clone, Copy)]
struct Form {
    code: Code,
    is_evex: bool,
    is_scatter: bool,
    /// Bytes of an element.
    element: usize,
    /// Bytes of an index.
    index: usize,
    /// How many elements there are.
    count: usize,
}

static FORMS: LazyLock<Vec<Form>> = LazyLock::new(|| Code::values().filter_map(Form::of).collect());

impl Form {
    fn of(code: Code) -> Option<Form> {
        use Mnemonic::*;
        let is_scatter = match code.mnemonic() {
            Vpgatherdd | Vpgatherdq | Vpgatherqd | Vpgatherqq | Vgatherdps | Vgatherdpd | Vgatherqps | Vgatherqpd => {
                false
            }
            Vpscatterdd | Vpscatterdq | Vpscatterqd | Vpscatterqq | Vscatterdps | Vscatterdpd | Vscatterqps
            | Vscatterqpd => true,
            _ => return None,
        };
        let info = code.op_code();
        let (index, indices) = info.op_kinds().iter().find_map(|kind| vector_of_addresses(*kind))?;
        let data = if is_scatter { info.op1_kind() } else { info.op0_kind() };
        let element = info.memory_size().size();
        Some(Form {
            code,
            is_evex: info.encoding() == EncodingKind::EVEX,
            is_scatter,
            element,
            index,
            count: (indices / index).min(vector_bytes(data) / element),
        })
    }

    /// The elements that are still to be done.
    fn selected<M>(&self, cpu: &Cpu, op: &Op<M>) -> u64 {
        let bits = if self.is_evex {
            cpu.fpu.k[usize::from(op.opmask())]
        } else {
            let mask = vector(cpu, op.r2);
            let sign = |i: &usize| mask[(i + 1) * self.element - 1] & 0x80 != 0;
            (0..self.count).filter(sign).fold(0, |bits, i| bits | 1 << i)
        };
        bits & ones(self.count)
    }

    /// Where element `i` is.
    fn address<M>(&self, cpu: &Cpu, op: &Op<M>, indices: &Bytes, i: usize, usage: Use) -> Result<Linear, Stop> {
        let index = match self.index {
            4 => i32::get(indices, i) as u64,
            _ => u64::get(indices, i),
        };
        let offset = effective_address(cpu, op).wrapping_add(index << op.scale()) & op.attr.address_mask();
        cpu.linear(Seg::from_number(op.seg()), offset, self.element as u64, usage)
    }

    /// Elements before `i` are no longer selected. Of a vector all of theirs becomes zero, as on the modelled processor.
    fn clear_below<M>(&self, cpu: &mut Cpu, op: &Op<M>, i: usize) {
        if self.is_evex {
            cpu.fpu.k[usize::from(op.opmask())] &= !below(i);
        } else {
            let mut mask = vector(cpu, op.r2);
            mask[..i * self.element].fill(0);
            set_vector(cpu, op.r2, &mask);
        }
    }

    /// No element is selected any longer.
    fn clear_all<M>(&self, cpu: &mut Cpu, op: &Op<M>) {
        if self.is_evex {
            cpu.fpu.k[usize::from(op.opmask())] = 0;
        } else {
            set_vector(cpu, op.r2, &[0; 64]);
        }
    }
}

/// The bits before bit `i`, which is below 16.
fn below(i: usize) -> u64 {
    (1 << i) - 1
}

/// Bytes of an index, and of all.
fn vector_of_addresses(kind: OpCodeOperandKind) -> Option<(usize, usize)> {
    use OpCodeOperandKind::*;
    Some(match kind {
        mem_vsib32x => (4, 16),
        mem_vsib32y => (4, 32),
        mem_vsib32z => (4, 64),
        mem_vsib64x => (8, 16),
        mem_vsib64y => (8, 32),
        mem_vsib64z => (8, 64),
        _ => return Option::None,
    })
}

fn vector_bytes(kind: OpCodeOperandKind) -> usize {
    match kind {
        OpCodeOperandKind::xmm_reg => 16,
        OpCodeOperandKind::ymm_reg => 32,
        _ => 64,
    }
}

fn vector(cpu: &Cpu, register: u8) -> Bytes {
    to_bytes(&cpu.fpu.vectors[usize::from(register & 31)])
}

fn set_vector(cpu: &mut Cpu, register: u8, bytes: &Bytes) {
    cpu.fpu.vectors[usize::from(register & 31)] = to_vector(bytes);
}

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    for (number, form) in (0..).zip(FORMS.iter()) {
        if form.is_scatter {
            table.numbered_careful(form.code, number, scatter);
        } else {
            table.numbered(form.code, number, unreachable_form, gather);
        }
    }
}

fn check(cpu: &Cpu, form: &Form) -> Outcome {
    if form.is_evex {
        available::avx512(cpu)
    } else {
        available::avx(cpu)
    }
}

/// An element that faults takes with it that those before it are done: the one case besides MXCSR where an instruction
/// changes registers and faults. What a register has beyond the elements becomes zero only at the end. Traps come before the
/// fault (SDM Vol. 2, VPGATHERDD): a single step, or a breakpoint on an element that was read.
fn gather<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let form = &FORMS[op.form()];
    check(cpu, form)?;
    let selected = form.selected(cpu, op);
    let indices = vector(cpu, op.r4());
    let mut value = vector(cpu, op.r1);
    for i in (0..form.count).filter(|i| selected >> i & 1 != 0) {
        let element = &mut value[i * form.element..(i + 1) * form.element];
        let loaded = form
            .address(cpu, op, &indices, i, Use::Read)
            .and_then(|at| without_alignment_check(cpu, |cpu| m.load_bytes(cpu, at, element)));
        if let Err(stop) = loaded {
            if !matches!(stop, Stop::Fault(_)) {
                return Err(stop);
            }
            set_vector(cpu, op.r1, &value);
            form.clear_below(cpu, op, i);
            let traps = cpu.flags.any(flags::TF) || debug::is_armed(cpu);
            let is_partial = selected & below(i) != 0;
            return Err(if traps && is_partial { Stop::Stay } else { stop });
        }
    }
    value[form.count * form.element..].fill(0);
    set_vector(cpu, op.r1, &value);
    form.clear_all(cpu, op);
    Ok(())
}

/// Where elements overlap, the last one counts. An element that faults lets those before it retire; the next execution
/// begins with it.
fn scatter(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let form = &FORMS[op.form()];
    check(cpu, form)?;
    let selected = form.selected(cpu, op);
    let indices = vector(cpu, op.r4());
    let value = vector(cpu, op.r1);
    for i in (0..form.count).filter(|i| selected >> i & 1 != 0) {
        let element = &value[i * form.element..(i + 1) * form.element];
        let stored = form
            .address(cpu, op, &indices, i, Use::Write)
            .and_then(|at| without_alignment_check(cpu, |cpu| m.store_bytes(cpu, at, element)));
        if let Err(stop) = stored {
            if matches!(stop, Stop::Fault(_)) && selected & below(i) != 0 {
                form.clear_below(cpu, op, i);
                return Err(Stop::Stay);
            }
            return Err(stop);
        }
    }
    form.clear_all(cpu, op);
    Ok(())
}
