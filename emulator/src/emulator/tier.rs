//! Between the tiers: when a block is translated, entered, and what is done where translated code leaves.

use super::run::{Left, next_page, try_again};
use super::{Counters, Emulator};
use crate::access::{Access, Linear, Stop};
use crate::blocks::{Block, Heat};
use crate::cpu::{CodeSize, Cr0, Cr4, Seg, Shadow, flags, fpu, gpr};
use crate::fast::Fast;
use crate::op::Op;
use crate::paging::{Intent, is_canonical};
use crate::translate::state::{CODE_CONTEXTS, gpr_slot, jump_cache};
use crate::translate::{Exit, Known, Made, NO_FUEL, Sort, Translation, TranslationError, Translator};

/// Most fuel for one stay in translated code.
const MOST_FUEL: u64 = 1 << 40;

/// MXCSR: all floating-point exceptions masked.
const MASKS: u32 = 0x1f80;

/// The context of data accesses, and whether code of SSE and of AVX may use vector registers.
type Terms = (u8, [bool; 2]);

/// What the interpreter does with the block under RIP.
pub(super) enum Climb {
    /// Interprets it.
    Interpret,
    /// Interprets its first instruction only, if the limit allows that.
    One,
    /// Looks where RIP leads now.
    Again,
    /// Comes back: the interpreter has executed an instruction that did not simply run on into the next.
    Back(Left),
}

/// How translated code was left.
enum Way {
    /// RIP leads to code that is not translated.
    Cold,
    /// The instruction under RIP is the interpreter's.
    Interpret,
    /// The interpreter has executed an instruction that did not simply run on into the next.
    Stopped(Left),
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
        self.fast.tlb.state.frame_mut().quiet = self.attention.quiet();
        Ok(())
    }

    /// Executes the block under RIP as translated code, if it is hot.
    pub(super) fn climb(&mut self, block: Block) -> Climb {
        let sort = self.sort();
        let is_flat = sort.is_64 || self.has_flat_segments();
        if !is_flat || usize::from(sort.context) >= CODE_CONTEXTS || self.is_foreign() {
            return Climb::Interpret;
        }
        let linear = self.cpu.rip;
        let host = match block.heat {
            Heat::SINGLE => return Climb::One,
            Heat::INTERPRETED => return Climb::Interpret,
            Heat::TRANSLATED => self.fast.tlb.state.jump(jump_cache(sort.context, sort.is_64), linear),
            heat if !self.is_hot(heat, linear) => {
                self.blocks.warm(linear);
                return Climb::Interpret;
            }
            _ => None,
        };
        let Some(host) = host.or_else(|| self.hot(linear, block.is_across())) else {
            return Climb::One;
        };
        match self.run_translated(host) {
            Way::Cold => Climb::Again,
            Way::Interpret => Climb::One,
            Way::Stopped(left) => Climb::Back(left),
        }
    }

    /// Executes a translated block that does not exceed the limit, or one instruction.
    pub(super) fn run_near_limit(&mut self) -> Left {
        let before = self.counters.instructions;
        if self.translator.is_some()
            && before < self.limit
            && let Some(block) = self.block()
            && let Climb::Back(left) = self.climb(block)
        {
            return left;
        }
        if self.counters.instructions == before {
            self.run_one()
        } else {
            Left::LookAround
        }
    }

    /// Others execute or write what translated code would not ask them about.
    fn is_foreign(&self) -> bool {
        self.elsewhere.is_some() || self.blocks.distrusts()
    }

    fn is_hot(&self, heat: Heat, linear: u64) -> bool {
        self.translator
            .as_ref()
            .is_some_and(|translator| heat.0 >= translator.threshold && !translator.stress.spares(linear))
    }

    /// The host's address of the block at `linear`, which is translated if need be; `None` if its first instruction is the
    /// interpreter's.
    #[cold]
    fn hot(&mut self, linear: u64, is_across: bool) -> Option<u64> {
        if let Some(host) = self.translated(linear) {
            self.blocks.set_heat(linear, None, Heat::TRANSLATED);
            return Some(host);
        }
        let sort = self.sort();
        let page = self.fast.fetch_page(&self.cpu, linear)?;
        let second = match next_page(&self.cpu, linear).filter(|_| is_across) {
            Some(next) => Some(self.fast.fetch_page(&self.cpu, next)?),
            None => None,
        };
        let translator = self.translator.as_mut()?;
        let table = &self.model.fast;
        let made = translator.translate((page, second), linear, sort, table, &mut self.fast, &self.attention);
        let heat = match made {
            Made::Block(_) => Heat::TRANSLATED,
            Made::Nothing => Heat::SINGLE,
            Made::Interpreted => Heat::INTERPRETED,
        };
        let gpa = page.gpa | linear & 0xfff;
        self.blocks.set_heat(linear, Some((gpa, self.cpu.view.code)), heat);
        match made {
            Made::Block(_) => self.translated(linear),
            Made::Nothing | Made::Interpreted => None,
        }
    }

    /// The host's address of the block at `linear`, if it is translated; translated code finds it there from now on.
    fn translated(&mut self, linear: u64) -> Option<u64> {
        let known = self.known(linear)?;
        if let Some((number, generation)) = known.second {
            let next = next_page(&self.cpu, linear)?;
            let page = self.fast.fetch_page(&self.cpu, next)?;
            if page.number != number || self.fast.tlb.ram().code.generation(number) != generation {
                return None;
            }
            self.blocks.note_executed(next);
        }
        let host = self.translator.as_ref()?.address(known.entry);
        let sort = self.sort();
        let cache = jump_cache(sort.context, sort.is_64);
        self.fast.tlb.state.insert_jump(cache, linear, host);
        self.blocks.note_executed(linear);
        Some(host)
    }

    fn known(&mut self, linear: u64) -> Option<Known> {
        let page = self.fast.fetch_page(&self.cpu, linear)?;
        let ram = self.fast.tlb.ram();
        self.translator.as_ref()?.find(page, linear, self.sort(), ram)
    }

    /// What code is translated for at the moment.
    fn sort(&self) -> Sort {
        Sort {
            context: self.cpu.view.context,
            is_64: self.cpu.view.is_long(),
        }
    }

    /// 32-bit code that the segments do not matter to which it uses without saying so.
    fn has_flat_segments(&self) -> bool {
        let (view, segments) = (&self.cpu.view, &self.cpu.segments);
        let is_flat = |seg| segments[seg].base == 0 && segments[seg].limit == u32::MAX;
        let is_data = |seg| {
            let attributes = segments[seg].attributes;
            attributes.is_present() && attributes.is_writable_data() && !attributes.is_expand_down()
        };
        view.has_descriptors()
            && view.code == CodeSize::Bits32
            && view.stack_mask == 0xffff_ffff
            && [Seg::Cs, Seg::Ss, Seg::Ds].into_iter().all(is_flat)
            && [Seg::Ss, Seg::Ds].into_iter().all(is_data)
    }

    /// Forgets which translated code is at which linear address.
    pub(super) fn forget_jumps(&mut self) {
        self.fast.tlb.state.forget_jumps();
    }

    /// Executes translated code at `host`, which is what RIP leads to, and whatever it leads to.
    fn run_translated(&mut self, host: u64) -> Way {
        let fuel = (self.limit - self.counters.instructions).min(MOST_FUEL) + NO_FUEL;
        let terms = self.terms();
        self.fill_frame(fuel, terms);
        let frame = self.fast.tlb.state.frame_mut();
        (frame.loaded, frame.pending) = (0, [1; 2]);
        self.attention.settle();
        let mut host = host;
        // The instruction that missed last.
        let mut missed = None;
        let mut after_sti = false;
        let (rip, undone, left) = loop {
            let Some(translator) = self.translator.as_mut() else {
                break (self.cpu.rip, 0, Way::Cold);
            };
            let site = translator.enter(&mut self.fast.tlb.state, host);
            *exits_of(&mut self.counters, site.exit) += 1;
            after_sti = site.follows_sti;
            // An instruction may need two pages, or one in two ways.
            if translator.stress.starved && missed != Some(site.rip) {
                self.fast.tlb.flush();
                self.fast.tlb.state.forget_jumps();
            }
            missed = matches!(site.exit, Exit::Miss { .. }).then_some(site.rip);
            match site.exit {
                Exit::Miss { resume, size, writes } => {
                    let resume = translator.resume(resume);
                    let at = Linear::new(Seg::Ds, self.fast.tlb.state.frame().address);
                    let intent = if writes { Intent::Write } else { Intent::Read };
                    match self.fast.learn(&self.cpu, at, u64::from(size), intent) {
                        Ok(()) => host = resume,
                        // A device: the fast way would learn no more.
                        Err(Stop::Careful) => break (site.rip, site.undone, Way::Stopped(Left::Careful)),
                        Err(_) => break (site.rip, site.undone, Way::Interpret),
                    }
                }
                Exit::Step { first, count, resume } => {
                    let resume = translator.resume(resume);
                    self.cpu.rip = site.rip;
                    self.empty_frame();
                    self.cpu.gpr.set(gpr::BLOCK_IP, site.rip);
                    if let Err((done, stop, op)) = self.step(first, count, terms) {
                        self.account(fuel, site.undone - done);
                        return Way::Stopped(self.stopped(stop, op.len, op.off));
                    }
                    let fuel = self.fast.tlb.state.frame().fuel;
                    self.fill_frame(fuel, terms);
                    host = resume;
                }
                Exit::Clock { resume, aux } => {
                    let resume = translator.resume(resume);
                    let cpu = &self.cpu;
                    if cpu.cr4.any(Cr4::TSD) && cpu.cpl() != 0 {
                        break (site.rip, site.undone, Way::Interpret);
                    }
                    let Ok(tsc) = self.fast.tsc() else {
                        break (site.rip, site.undone, Way::Interpret);
                    };
                    let frame = self.fast.tlb.state.frame_mut();
                    frame.gpr[gpr_slot(gpr::RAX)] = tsc & 0xffff_ffff;
                    frame.gpr[gpr_slot(gpr::RDX)] = tsc >> 32;
                    if aux {
                        frame.gpr[gpr_slot(gpr::RCX)] = cpu.msr.tsc_aux & 0xffff_ffff;
                    }
                    host = resume;
                }
                Exit::Interpret => break (site.rip, site.undone, Way::Interpret),
                Exit::LookAround => break (site.rip, site.undone, Way::Cold),
                Exit::Jump { patch: Some(patch) } => {
                    let Some(Known { near, .. }) = self.known(site.rip) else {
                        break (site.rip, 0, Way::Cold);
                    };
                    let Some(translator) = self.translator.as_mut() else {
                        break (site.rip, 0, Way::Cold);
                    };
                    host = translator.link(patch, near);
                }
                Exit::Jump { patch: None } => match self.translated(site.rip) {
                    Some(to) => host = to,
                    None => break (site.rip, 0, Way::Cold),
                },
                Exit::Indirect { release } => {
                    let frame = self.fast.tlb.state.frame_mut();
                    let target = frame.address;
                    if !is_canonical(&self.cpu, target) {
                        break (site.rip, site.undone, Way::Interpret);
                    }
                    frame.fuel += u64::from(site.undone - 1);
                    let stack = &mut frame.gpr[gpr_slot(gpr::RSP)];
                    if release > 0 {
                        *stack = stack.wrapping_add(u64::from(release)) & self.cpu.view.stack_mask;
                    }
                    match self.translated(target) {
                        Some(to) => host = to,
                        None => break (target, 0, Way::Cold),
                    }
                }
            }
        };
        self.cpu.rip = rip;
        self.account(fuel, undone);
        self.empty_frame();
        if after_sti && undone > 0 && self.fast.tlb.state.frame().was_enabled == 0 {
            self.cpu.shadow = Shadow::Sti;
            return Way::Stopped(Left::LookAround);
        }
        left
    }

    /// Counts the instructions since there was so much fuel, but for those that were not executed.
    fn account(&mut self, fuel: u64, undone: u8) {
        let executed = fuel - self.fast.tlb.state.frame().fuel - u64::from(undone);
        self.counters.instructions += executed;
        self.counters.translated += executed;
    }

    /// Interprets operations in the middle of translated code. If one does not simply run on into the next: how many did, why,
    /// and which one it is.
    fn step(&mut self, first: u32, count: u8, terms: Terms) -> Result<(), (u8, Stop, Op<Fast>)> {
        for done in 0..count {
            let Some(translator) = &self.translator else {
                return Ok(());
            };
            let op = translator.step(first + u32::from(done));
            let outcome = (op.run)(&mut self.cpu, &mut self.fast, &op)
                .or_else(|stop| try_again(&mut self.cpu, &mut self.fast, &op, stop));
            match outcome {
                // What follows was translated for these; STAC and CLAC change the context.
                Ok(()) if self.terms() == terms => {}
                Ok(()) => return Err((done, Stop::Next, op)),
                Err(Stop::Next) if self.terms() == terms && self.may_go_on() => {}
                Err(stop) => return Err((done, stop, op)),
            }
        }
        Ok(())
    }

    /// An instruction that may have changed flags has changed nothing that anybody must look at before the next.
    fn may_go_on(&self) -> bool {
        let cpu = &self.cpu;
        let is_quiet = cpu.shadow == Shadow::None && cpu.event.is_none() && !cpu.flags.any(flags::TF);
        let is_waited_for = self.window && cpu.accepts_interrupts() || self.nmi_window && cpu.accepts_nmi();
        is_quiet && !is_waited_for && !self.attention.any()
    }

    /// What a block relies on after it has begun: the context of data accesses, and that code of SSE and AVX may use vector
    /// registers. It may if they are switched on, and no floating-point exception can arise; of AVX, if what it clears above 256
    /// bits is zero, too.
    fn terms(&self) -> Terms {
        const AVX: u64 = fpu::SSE | fpu::AVX;
        let cpu = &self.cpu;
        let is_on = cpu.cr0.0 & (Cr0::EM | Cr0::TS) | !cpu.cr4.0 & Cr4::OSFXSR == 0;
        let sse = is_on && cpu.fpu.mxcsr & MASKS == MASKS;
        let is_wide = || {
            let vectors = cpu.fpu.vectors[..16].iter();
            vectors.fold([0; 4], |all: [u64; 4], vector| {
                core::array::from_fn(|i| all[i] | vector[4 + i])
            }) != [0; 4]
        };
        let avx = sse
            && cpu.cr4.any(Cr4::OSXSAVE)
            && cpu.xcr0 & AVX == AVX
            && is_x86_feature_detected!("avx")
            && !(self.model.fast.has_evex && is_wide());
        (cpu.view.context, [sse, avx])
    }

    fn fill_frame(&mut self, fuel: u64, (_, may_use): Terms) {
        // Translated code writes there, which nobody borrows meanwhile.
        let vectors = (&raw mut self.cpu.fpu.vectors).expose_provenance() as u64;
        let cpu = &self.cpu;
        let frame = self.fast.tlb.state.frame_mut();
        frame.fuel = fuel;
        for register in 0..16 {
            frame.gpr[gpr_slot(register)] = cpu.gpr.get(register);
        }
        frame.bases = [Seg::Fs, Seg::Gs].map(|seg| cpu.view.flat_base[seg as usize]);
        frame.vectors = vectors;
        frame.refused = may_use.map(|may| u64::from(!may));
        let status = cpu.flags.status();
        frame.control = cpu.flags.bits() & !(flags::STATUS | flags::VM | flags::RF);
        let may_mask = cpu.cpl() <= cpu.flags.iopl();
        frame.unprivileged = u64::from(!may_mask);
        frame.awaited = u64::from(self.window);
        // OF is bit 11.
        frame.flags = (status as u16 & 0xff) << 8 | (status >> 11 & 1) as u16;
    }

    fn empty_frame(&mut self) {
        let frame = self.fast.tlb.state.frame();
        for register in 0..16 {
            self.cpu.gpr.set(register, frame.gpr[gpr_slot(register)]);
        }
        let (status, control) = (u64::from(frame.flags), frame.control);
        self.cpu.flags.set_status(status >> 8 | (status & 1) << 11);
        for flag in [flags::IF, flags::DF] {
            self.cpu.flags.assign(flag, control & flag != 0);
        }
    }
}

/// The counter of exits for this reason.
fn exits_of(counters: &mut Counters, exit: Exit) -> &mut u64 {
    match exit {
        Exit::Miss { .. } => &mut counters.miss_exits,
        Exit::Step { .. } | Exit::Clock { .. } => &mut counters.step_exits,
        Exit::Interpret => &mut counters.interpret_exits,
        Exit::Jump { .. } | Exit::Indirect { .. } => &mut counters.jump_exits,
        Exit::LookAround => &mut counters.stop_exits,
    }
}
