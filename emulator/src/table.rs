//! What the emulator supports: for each instruction encoding (iced-x86 `Code`), the functions that execute it.
//!
//! Everything about an encoding that the decoder library knows already (operand kinds and accesses, flags read, written
//! and undefined, CPUID features) is asked there; the table adds which functions give it its meaning. An encoding
//! without a row, or whose CPUID feature is not announced to the guest, is #UD.

use iced_x86::{Code, CpuidFeature, DecoderOptions};

use crate::access::Access;
use crate::op::Handler;

/// The functions that execute one encoding.
pub struct Form<M: 'static> {
    /// Executes it when the r/m operand is a register, or when there is no memory operand.
    pub register: Handler<M>,
    /// Executes it with a memory operand in any segment and mode.
    pub memory: Handler<M>,
    /// Executes it with a memory operand in 64-bit mode with 64-bit addresses, where segments are flat.
    pub flat: Handler<M>,
    /// How control continues.
    pub flow: Flow,
    /// Of an encoding with a VEX or EVEX prefix: number of the form among those of its family, for
    /// [`Op::form`](crate::op::Op::form).
    pub number: u16,
}

impl<M> Clone for Form<M> {
    fn clone(&self) -> Form<M> {
        *self
    }
}

impl<M> Copy for Form<M> {}

/// How control continues after an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The next instruction follows, unless a condition holds and the instruction says that it was taken.
    Next,
    /// The instruction always sets RIP itself.
    Branch,
    /// The block ends here: the instruction may change the mode, translations, events or code.
    End,
}

/// How the decoder reads instructions, for a processor with these features: as AMD's do; and encodings of features that are
/// not announced as they were before. Hints (0F 0D and 0F 18 to 0F 1F) do nothing, TZCNT and LZCNT are BSF and BSR, WBNOINVD
/// is WBINVD.
pub fn decoder_options(announced: impl Fn(CpuidFeature) -> bool) -> u32 {
    let older = [
        (CpuidFeature::BMI1, DecoderOptions::NO_MPFX_0FBC),
        (CpuidFeature::LZCNT, DecoderOptions::NO_MPFX_0FBD),
        (CpuidFeature::WBNOINVD, DecoderOptions::NO_WBNOINVD),
    ];
    older.into_iter().filter(|(feature, _)| !announced(*feature)).fold(
        DecoderOptions::AMD | DecoderOptions::FORCE_RESERVED_NOP,
        |options, (_, older)| options | older,
    )
}

/// Forms by encoding.
pub struct Table<M: 'static> {
    forms: Box<[Option<Form<M>>]>,
    /// How the decoder reads encodings that have had more than one meaning.
    pub(crate) options: u32,
    /// There are encodings with an EVEX prefix; if not, nothing is looked at behind that.
    pub(crate) has_evex: bool,
}

impl<M: Access> Table<M> {
    /// The whole table, for encodings whose CPUID features are all announced.
    pub fn new(announced: impl Fn(CpuidFeature) -> bool) -> Table<M> {
        let mut table = Table {
            forms: vec![None; Code::values().len()].into_boxed_slice(),
            options: decoder_options(&announced),
            has_evex: announced(CpuidFeature::AVX512F),
        };
        crate::insn::fill(&mut table);
        for code in Code::values() {
            if !code.cpuid_features().iter().all(|feature| announced(*feature)) {
                table.forms[code as usize] = None;
            }
        }
        table
    }

    /// The functions for `code`, if it is supported and announced.
    #[inline]
    pub fn form(&self, code: Code) -> Option<&Form<M>> {
        self.forms[code as usize].as_ref()
    }

    /// Adds an encoding whose operands are registers, immediates or implied.
    pub(crate) fn plain(&mut self, code: Code, handler: Handler<M>) {
        self.add(
            code,
            Form {
                register: handler,
                memory: handler,
                flat: handler,
                flow: Flow::Next,
                number: 0,
            },
        );
    }

    /// Adds an encoding with an r/m operand: one function for registers and one for memory in any mode.
    pub(crate) fn rm(&mut self, code: Code, register: Handler<M>, memory: Handler<M>) {
        self.add(
            code,
            Form {
                register,
                memory,
                flat: memory,
                flow: Flow::Next,
                number: 0,
            },
        );
    }

    /// Adds an encoding with an r/m operand and a function of its own for flat 64-bit addressing.
    pub(crate) fn rm_flat(&mut self, code: Code, register: Handler<M>, memory: Handler<M>, flat: Handler<M>) {
        self.add(
            code,
            Form {
                register,
                memory,
                flat,
                flow: Flow::Next,
                number: 0,
            },
        );
    }

    /// As [`Table::rm`], of a family whose functions look up what else they must know under this number.
    pub(crate) fn numbered(&mut self, code: Code, number: u16, register: Handler<M>, memory: Handler<M>) {
        self.add(
            code,
            Form {
                register,
                memory,
                flat: memory,
                flow: Flow::Next,
                number,
            },
        );
    }

    /// Adds an encoding without memory operand that sets RIP itself.
    pub(crate) fn jump(&mut self, code: Code, handler: Handler<M>) {
        self.branch(code, handler, handler, handler);
    }

    /// Adds an encoding that sets RIP itself.
    pub(crate) fn branch(&mut self, code: Code, register: Handler<M>, memory: Handler<M>, flat: Handler<M>) {
        self.add(
            code,
            Form {
                register,
                memory,
                flat,
                flow: Flow::Branch,
                number: 0,
            },
        );
    }

    /// Adds an encoding that ends its block; it returns [`Stop::Next`](crate::access::Stop::Next) and its like.
    pub(crate) fn end(&mut self, code: Code, handler: Handler<M>) {
        self.add(
            code,
            Form {
                register: handler,
                memory: handler,
                flat: handler,
                flow: Flow::End,
                number: 0,
            },
        );
    }

    /// Adds an encoding that stores more than once, touches descriptors, or does whatever else only the careful way
    /// can.
    pub(crate) fn careful(&mut self, code: Code, handler: Handler<crate::careful::Careful>) {
        self.end(code, M::careful(handler));
    }

    /// As [`Table::careful`], with an r/m operand: one function for registers and one for memory.
    pub(crate) fn careful_rm(
        &mut self,
        code: Code,
        register: Handler<crate::careful::Careful>,
        memory: Handler<crate::careful::Careful>,
    ) {
        let (register, memory) = (M::careful(register), M::careful(memory));
        self.add(
            code,
            Form {
                register,
                memory,
                flat: memory,
                flow: Flow::End,
                number: 0,
            },
        );
    }

    /// As [`Table::careful`], of a family whose functions look up what else they must know under this number.
    pub(crate) fn numbered_careful(&mut self, code: Code, number: u16, handler: Handler<crate::careful::Careful>) {
        let handler = M::careful(handler);
        self.add(
            code,
            Form {
                register: handler,
                memory: handler,
                flat: handler,
                flow: Flow::End,
                number,
            },
        );
    }

    fn add(&mut self, code: Code, form: Form<M>) {
        let slot = &mut self.forms[code as usize];
        debug_assert!(slot.is_none(), "{code:?} has two rows");
        *slot = Some(form);
    }
}
