//! Between the tiers: when a block is translated, entered, and what is done where translated code leaves.

use super::Emulator;
use crate::access::Linear;
use crate::blocks::{Block, Heat};
use crate::cpu::{Seg, gpr};
use crate::paging::{Intent, is_canonical};
use crate::translate::state::{CODE_CONTEXTS, gpr_slot};
use crate::translate::{Entry, Exit, Made, NO_FUEL, Translation, TranslationError, Translator};

/// Most fuel for one stay in translated code.
const MOST_FUEL: u64 = 1 << 40;

/// What the interpreter does with the block under RIP.
pub(super) enum Climb {
    /// Interprets it.
    Interpret,
    /// Interprets its first instruction only, if the limit allows that.
    One,
    /// Looks where RIP leads now.
    Again,
}

/// How translated code was left.
enum Left {
    /// RIP leads to code that is not translated.
    Cold,
    /// The instruction under RIP is the interpreter's.
    Interpret,
}

impl Emulator {
    /// Translates hot code from now on, or no longer.
    ///
    /// # Errors
    /// [`TranslationError`] if this host cannot; code is interpreted then.
    pub fn set_translation(&mut self, translation: Option<Translation>) -> Result<(), TranslationError> {
        self.translator = None;
        self.fast.tlb.state.forget_jumps();
        self.attention.set_translating(false);
        // What was tried before is tried again.
        self.blocks.clear();
        let Some(translation) = translation else { return Ok(()) };
        self.translator = Some(Box::new(Translator::new(translation)?));
        self.attention.set_translating(true);
        self.fast.tlb.state.frame_mut().signals = self.attention.signals();
        Ok(())
    }

    /// Executes the block under RIP as translated code, if it is hot.
    pub(super) fn climb(&mut self, block: Block) -> Climb {
        let context = self.cpu.view.context;
        if !self.cpu.view.is_long() || usize::from(context) >= CODE_CONTEXTS || self.is_foreign() {
            return Climb::Interpret;
        }
        let linear = self.cpu.rip;
        let host = match block.heat {
            Heat::SINGLE => return Climb::One,
            Heat::TRANSLATED => self.fast.tlb.state.jump(context, linear),
            heat if !self.is_hot(heat) => {
                self.blocks.warm(linear);
                return Climb::Interpret;
            }
            _ => None,
        };
        let Some(host) = host.or_else(|| self.hot(linear)) else {
            return Climb::One;
        };
        match self.run_translated(host) {
            Left::Cold => Climb::Again,
            Left::Interpret => Climb::One,
        }
    }

    /// Others execute or write what translated code would not ask them about.
    fn is_foreign(&self) -> bool {
        self.elsewhere.is_some() || self.blocks.distrusts()
    }

    fn is_hot(&self, heat: Heat) -> bool {
        self.translator
            .as_ref()
            .is_some_and(|translator| heat.0 >= translator.threshold)
    }

    /// The host's address of the block at `linear`, which is translated if need be; `None` if its first instruction is the
    /// interpreter's.
    #[cold]
    fn hot(&mut self, linear: u64) -> Option<u64> {
        if let Some(host) = self.translated(linear) {
            self.blocks.set_heat(linear, None, Heat::TRANSLATED);
            return Some(host);
        }
        let context = self.cpu.view.context;
        let page = self.fast.fetch_page(&self.cpu, linear)?;
        let translator = self.translator.as_mut()?;
        let made = translator.translate(
            page,
            linear,
            context,
            &self.model.fast,
            &mut self.fast,
            &self.attention,
        );
        let heat = match made {
            Made::Block(_) => Heat::TRANSLATED,
            Made::Nothing => Heat::SINGLE,
        };
        let gpa = page.gpa | linear & 0xfff;
        self.blocks.set_heat(linear, Some((gpa, self.cpu.view.code)), heat);
        match made {
            Made::Block(_) => self.translated(linear),
            Made::Nothing => None,
        }
    }

    /// The host's address of the block at `linear`, if it is translated; translated code finds it there from now on.
    fn translated(&mut self, linear: u64) -> Option<u64> {
        let entry = self.known(linear)?;
        let host = self.translator.as_ref()?.address(entry);
        let context = self.cpu.view.context;
        self.fast.tlb.state.insert_jump(context, linear, host);
        self.blocks.note_executed(linear);
        Some(host)
    }

    fn known(&mut self, linear: u64) -> Option<Entry> {
        let context = self.cpu.view.context;
        let page = self.fast.fetch_page(&self.cpu, linear)?;
        let ram = self.fast.tlb.ram();
        self.translator.as_ref()?.find(page, linear, context, ram)
    }

    /// Forgets which translated code is at which linear address.
    pub(super) fn forget_jumps(&mut self) {
        self.fast.tlb.state.forget_jumps();
    }

    /// Executes translated code at `host`, which is what RIP leads to, and whatever it leads to.
    fn run_translated(&mut self, host: u64) -> Left {
        let fuel = (self.limit - self.counters.instructions).min(MOST_FUEL) + NO_FUEL;
        self.fill_frame(fuel);
        let mut host = host;
        let (rip, undone, left) = loop {
            let Some(translator) = self.translator.as_mut() else {
                break (self.cpu.rip, 0, Left::Cold);
            };
            let site = translator.enter(&mut self.fast.tlb.state, host);
            self.counters.exits += 1;
            match site.exit {
                Exit::Miss { resume, size, writes } => {
                    let resume = translator.resume(resume);
                    let at = Linear::new(Seg::Ds, self.fast.tlb.state.frame().address);
                    let intent = if writes { Intent::Write } else { Intent::Read };
                    match self.fast.learn(&self.cpu, at, u64::from(size), intent) {
                        Ok(()) => host = resume,
                        Err(_) => break (site.rip, site.undone, Left::Interpret),
                    }
                }
                Exit::Interpret => break (site.rip, site.undone, Left::Interpret),
                Exit::LookAround => break (site.rip, site.undone, Left::Cold),
                Exit::Jump {
                    patch: Some(patch),
                    backward,
                } => {
                    let Some(entry) = self.known(site.rip) else {
                        break (site.rip, 0, Left::Cold);
                    };
                    let Some(translator) = self.translator.as_mut() else {
                        break (site.rip, 0, Left::Cold);
                    };
                    host = translator.link(patch, entry, backward);
                }
                Exit::Jump { patch: None, .. } => match self.translated(site.rip) {
                    Some(to) => host = to,
                    None => break (site.rip, 0, Left::Cold),
                },
                Exit::Indirect { release } => {
                    let frame = self.fast.tlb.state.frame_mut();
                    let target = frame.address;
                    if !is_canonical(&self.cpu, target) {
                        break (site.rip, site.undone, Left::Interpret);
                    }
                    let stack = &mut frame.gpr[gpr_slot(gpr::RSP)];
                    *stack = stack.wrapping_add(u64::from(release));
                    match self.translated(target) {
                        Some(to) => host = to,
                        None => break (target, 0, Left::Cold),
                    }
                }
            }
        };
        self.cpu.rip = rip;
        let executed = fuel - self.fast.tlb.state.frame().fuel - u64::from(undone);
        self.counters.instructions += executed;
        self.counters.translated += executed;
        self.empty_frame();
        left
    }

    fn fill_frame(&mut self, fuel: u64) {
        let cpu = &self.cpu;
        let frame = self.fast.tlb.state.frame_mut();
        frame.fuel = fuel;
        for register in 0..16 {
            frame.gpr[gpr_slot(register)] = cpu.gpr.get(register);
        }
        frame.bases = [Seg::Fs, Seg::Gs].map(|seg| cpu.view.flat_base[seg as usize]);
        let status = cpu.flags.status();
        // OF is bit 11.
        frame.flags = (status as u16 & 0xff) << 8 | (status >> 11 & 1) as u16;
    }

    fn empty_frame(&mut self) {
        let frame = self.fast.tlb.state.frame();
        for register in 0..16 {
            self.cpu.gpr.set(register, frame.gpr[gpr_slot(register)]);
        }
        let flags = u64::from(frame.flags);
        self.cpu.flags.set_status(flags >> 8 | (flags & 1) << 11);
    }
}
