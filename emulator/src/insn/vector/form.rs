//! What the shells must know of an encoding: from its row, and from the decoder library's description of its operands.

use std::collections::HashMap;
use std::sync::LazyLock;

use iced_x86::{Code, EncodingKind, Mnemonic, OpCodeInfo, OpCodeOperandKind};

use super::lanes::Kernel;
use super::{convert, float, integer, later, mov, permute, resize};

/// A mnemonic and its meaning.
#[derive(Debug, Clone, Copy)]
pub(in crate::insn) struct Row {
    mnemonic: Mnemonic,
    kernel: Kernel,
    element: u8,
    source: u8,
    part: u8,
    is_scalar: bool,
    sets_flags: bool,
    fetch: Fetch,
    merge: Merge,
    is_aligned: bool,
    only: Only,
}

/// Which encodings of its mnemonic a row is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Only {
    All,
    /// Those with an immediate.
    Immediate,
    /// Those without.
    NoImmediate,
    /// Those whose destination may be in memory.
    Store,
    /// The others.
    NoStore,
}

/// What elements that are not selected are, if they do not become zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merge {
    /// As they were in the destination.
    Destination,
    /// As in the first source: blends.
    First,
}

/// How much of a memory source is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetch {
    /// The elements that are selected.
    Selected,
    /// All, whatever is selected.
    Whole,
    /// As many elements as are selected, without gaps: the rule of VPEXPAND and, for what is stored, VPCOMPRESS.
    Contiguous,
}

impl Row {
    /// An operation on elements of `element` bytes, as an opmask selects them.
    pub const fn new(mnemonic: Mnemonic, element: u8, kernel: Kernel) -> Row {
        Row {
            mnemonic,
            kernel,
            element,
            source: element,
            part: 0,
            is_scalar: false,
            sets_flags: false,
            fetch: Fetch::Selected,
            merge: Merge::Destination,
            is_aligned: false,
            only: Only::All,
        }
    }

    /// Elements of the source have another size than those of the destination: conversions.
    pub const fn from(self, source: u8) -> Row {
        Row { source, ..self }
    }

    /// The destination has only so many bytes.
    pub const fn part(self, part: u8) -> Row {
        Row { part, ..self }
    }

    /// Only the first element is computed; those above it are as in the first source, which is the kernel's task too.
    pub const fn scalar(self) -> Row {
        Row {
            is_scalar: true,
            ..self
        }
    }

    /// There is no destination: all operands are sources, and the kernel leaves status flags in `out`.
    pub const fn flags(self) -> Row {
        Row {
            sets_flags: true,
            ..self
        }
    }

    /// A memory operand is read whole, whatever is selected: elements of the result depend on others than their own.
    pub const fn whole(self) -> Row {
        Row {
            fetch: Fetch::Whole,
            ..self
        }
    }

    /// Memory holds the selected elements only, without gaps.
    pub const fn contiguous(self) -> Row {
        Row {
            fetch: Fetch::Contiguous,
            ..self
        }
    }

    /// Elements that are not selected are those of the first source.
    pub const fn blends(self) -> Row {
        Row {
            merge: Merge::First,
            ..self
        }
    }

    /// The memory operand must be aligned to its size.
    pub const fn aligned(self) -> Row {
        Row {
            is_aligned: true,
            ..self
        }
    }

    /// Of the mnemonic's encodings, only those with an immediate.
    pub const fn by_immediate(self) -> Row {
        Row {
            only: Only::Immediate,
            ..self
        }
    }

    /// Of the mnemonic's encodings, only those without an immediate.
    pub const fn by_source(self) -> Row {
        Row {
            only: Only::NoImmediate,
            ..self
        }
    }

    /// Of the mnemonic's encodings, only those whose destination may be in memory.
    pub const fn to_memory(self) -> Row {
        Row {
            only: Only::Store,
            ..self
        }
    }

    /// Of the mnemonic's encodings, only those whose destination is a register.
    pub const fn to_register(self) -> Row {
        Row {
            only: Only::NoStore,
            ..self
        }
    }

    fn is_for(&self, info: &OpCodeInfo) -> bool {
        let has_immediate = info.op_kinds().contains(&OpCodeOperandKind::imm8);
        match self.only {
            Only::All => true,
            Only::Immediate => has_immediate,
            Only::NoImmediate => !has_immediate,
            Only::Store => in_memory(info.op0_kind()),
            Only::NoStore => !in_memory(info.op0_kind()),
        }
    }
}

/// Where an operand in a register is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A vector register.
    Vector,
    /// An opmask register.
    Opmask,
    /// A general-purpose register.
    General,
    /// The status flags.
    Flags,
}

/// An encoding.
#[derive(Debug, Clone)]
pub(super) struct Form {
    pub kernel: Kernel,
    /// EVEX, not VEX.
    pub is_evex: bool,
    /// Bytes of an element of the destination.
    pub element: usize,
    /// How many elements an opmask selects from.
    pub count: usize,
    /// Bytes of the longest vector operand.
    pub bytes: usize,
    /// Bytes of a general-purpose operand.
    pub general: usize,
    /// Where the destination is, if not in memory.
    pub target: Place,
    /// The destination may be in memory.
    pub stores: bool,
    /// How many sources there are, 1 to 3.
    pub sources: usize,
    /// Where the last source is, if not in memory.
    pub source: Place,
    /// Bytes of the memory operand.
    pub memory: usize,
    /// Bytes of an element of the memory operand.
    pub memory_element: usize,
    /// Bytes of the memory operand if it is one element for all.
    pub broadcast: usize,
    pub fetch: Fetch,
    pub merge: Merge,
    pub is_aligned: bool,
}

impl Form {
    /// All elements.
    #[inline(always)]
    pub fn all(&self) -> u64 {
        ones(self.count)
    }

    fn new(row: &Row, info: &OpCodeInfo) -> Form {
        use OpCodeOperandKind::imm8;
        let kinds = info.op_kinds();
        let operands: Vec<_> = kinds.iter().copied().filter(|kind| *kind != imm8).collect();
        let (target, sources) = match operands.split_first() {
            Some((target, sources)) if !row.sets_flags => (place(*target), sources),
            _ => (Place::Flags, &operands[..]),
        };
        let stores = target != Place::Flags && operands.first().is_some_and(|kind| in_memory(*kind));
        // An immediate that names a register comes behind the operand that may be in memory.
        let last = sources.get(sources.len().min(2).saturating_sub(1)).copied();
        let bytes = operands
            .iter()
            .map(|kind| vector_bytes(*kind))
            .max()
            .unwrap_or(0)
            .max(16);
        let general = if operands.iter().any(|kind| is_quadword(*kind)) {
            8
        } else {
            4
        };
        let (element, source) = (usize::from(row.element), usize::from(row.source));
        let memory = info.memory_size().size();
        Form {
            kernel: row.kernel,
            is_evex: info.encoding() == EncodingKind::EVEX,
            element,
            count: match row.part {
                _ if row.is_scalar => 1,
                0 => bytes / element.max(source),
                part => usize::from(part) / element,
            },
            bytes,
            general,
            target,
            stores,
            sources: sources.len(),
            source: last.map_or(Place::Vector, place),
            memory,
            memory_element: if stores { element } else { source },
            broadcast: info.broadcast_memory_size().size(),
            fetch: row.fetch,
            merge: row.merge,
            is_aligned: row.is_aligned,
        }
    }
}

/// The low `count` bits.
#[inline(always)]
pub(super) fn ones(count: usize) -> u64 {
    u64::MAX >> (64 - count.clamp(1, 64))
}

fn place(kind: OpCodeOperandKind) -> Place {
    use OpCodeOperandKind::*;
    match kind {
        k_reg | k_rm | k_vvvv | k_or_mem => Place::Opmask,
        r32_reg | r32_rm | r32_or_mem | r64_reg | r64_rm | r64_or_mem => Place::General,
        _ => Place::Vector,
    }
}

fn is_quadword(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    matches!(kind, r64_reg | r64_rm | r64_or_mem)
}

fn in_memory(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    matches!(
        kind,
        mem | xmm_or_mem | ymm_or_mem | zmm_or_mem | r32_or_mem | r64_or_mem
    )
}

fn vector_bytes(kind: OpCodeOperandKind) -> usize {
    use OpCodeOperandKind::*;
    match kind {
        xmm_reg | xmm_rm | xmm_vvvv | xmm_is4 | xmm_or_mem => 16,
        ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 | ymm_or_mem => 32,
        zmm_reg | zmm_rm | zmm_vvvv | zmm_or_mem => 64,
        _ => 0,
    }
}

/// All forms, and the number of each encoding's.
struct Forms {
    forms: Vec<Form>,
    numbers: Vec<Option<u16>>,
}

static FORMS: LazyLock<Forms> = LazyLock::new(|| {
    let mut rows: HashMap<Mnemonic, Vec<Row>> = HashMap::new();
    for row in all_rows() {
        rows.entry(row.mnemonic).or_default().push(row);
    }
    let mut forms = Vec::new();
    let numbers = Code::values()
        .map(|code| {
            let info = code.op_code();
            if !matches!(info.encoding(), EncodingKind::VEX | EncodingKind::EVEX) {
                return None;
            }
            let mut rows = rows.get(&code.mnemonic())?.iter();
            let row = rows.find(|row| row.is_for(info))?;
            let number = u16::try_from(forms.len()).ok()?;
            forms.push(Form::new(row, info));
            Some(number)
        })
        .collect();
    Forms { forms, numbers }
});

/// The rows of all families.
fn all_rows() -> impl Iterator<Item = Row> {
    [
        convert::rows(),
        float::rows(),
        integer::rows(),
        later::rows(),
        mov::rows(),
        permute::rows(),
        resize::rows(),
    ]
    .into_iter()
    .flatten()
}

/// The number of an encoding's form, if it has a row.
pub(super) fn number(code: Code) -> Option<u16> {
    FORMS.numbers[code as usize]
}

/// A form by its number.
#[inline(always)]
pub(super) fn form(number: usize) -> &'static Form {
    &FORMS.forms[number]
}
