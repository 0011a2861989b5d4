//! Random code played by two machines in step. One is all device, is answered at once, and so tells what each transaction
//! reads and stores; on it nothing is ever interrupted. The other has RAM here and devices there, is answered late, and has
//! to bear what the outside does meanwhile: memory changes under it, answers come to the wrong address, debuggers look, the
//! machine is saved and goes on elsewhere, instructions are cancelled. What both are told between instructions (interrupts,
//! registers, stores of other CPUs) they are told at the same place. They must end alike.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reprise_emulator::cpu::{Cr0, gpr};
use reprise_emulator::{
    Answer, Attention, Cause, Cpu, Direction, Emulator, Entry, Error, Event, Exit, Reply, Request, SupplyError,
};

use crate::dice::Dice;
use crate::forms::forms;
use crate::late::Meddling;
use crate::layout::*;
use crate::scene::Scene;
use crate::story::{Transaction, assert_same, elsewhere, transaction};
use crate::world::{Batches, Placement, World};

/// How often the late machine comes out before a play is broken off.
const OUTINGS: usize = 200;
/// Transactions of the prompt machine between two places where both are compared.
const STEPS: usize = 600;

/// What a play was good for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Played {
    pub waits: usize,
    pub saved: usize,
    pub cancelled: usize,
    pub events: usize,
    /// Not played to its end: page tables were exchanged, which only RAM marks as accessed, or there was no end.
    pub broken_off: bool,
}

/// The machines, to be used for many plays.
pub struct Stage {
    watch: Watch,
    prompt: World,
    late: Vec<(World, World)>,
}

impl Stage {
    pub fn new() -> Stage {
        Stage {
            watch: Watch::new(),
            prompt: World::new(Placement::Everything),
            late: Placement::MIXED
                .map(|placement| (World::new(placement), World::new(placement)))
                .into(),
        }
    }

    /// Plays what `bytes` say.
    pub fn play(&mut self, bytes: &[u8]) -> Played {
        let mut dice = Dice::new(bytes);
        let placement = dice.below(self.late.len());
        let scene = compose(&mut dice);
        let (late, other) = &mut self.late[placement];
        late.batches = dice.choose(&[Batches::Whole, Batches::Short, Batches::No]);
        self.prompt.load(&scene.cpu, &scene.image);
        late.load(&scene.cpu, &scene.image);
        let mut duet = Duet {
            dice,
            start: scene.cpu,
            base: late.emulator.counters().instructions,
            prompt_base: self.prompt.emulator.counters().instructions,
            watch: &mut self.watch,
            prompt: &mut self.prompt,
            late,
            other,
            current: None,
            meddling: Meddling::default(),
            begins_anew: false,
            begun_before: false,
            mark: 0,
            played: Played::default(),
        };
        duet.played.broken_off = duet.play().is_none();
        duet.played
    }
}

/// Code and a state to begin with.
pub fn compose(dice: &mut Dice) -> Scene {
    let mode = dice.choose(&Mode::ALL);
    let offsets = dice.choose(&Offsets::ALL);
    let marks = dice.choose(&[Marks::Set, Marks::Clear]);
    let forms: Vec<_> = forms().iter().filter(|form| form.bits == mode.bits()).collect();
    let first = forms[dice.below(forms.len())];
    let Scene { mut cpu, image } = Scene::new(first, mode, offsets, marks);
    let mut image = Image(image);
    let mut code = first.bytes.clone();
    if dice.one_in(3) {
        let length = dice.below(15);
        code = (0..length).map(|_| dice.byte()).collect();
    }
    for _ in 0..dice.below(6) {
        code.extend(&forms[dice.below(forms.len())].bytes);
    }
    let ip = if mode.is_8086() { cpu.rip } else { cpu.rip - CODE };
    image.at(mode, CODE + ip, &code);
    // Some handlers return.
    if dice.one_in(2) {
        let iret: &[u8] = if mode.is_long() { &[0x48, 0xcf] } else { &[0xcf] };
        for vector in 0..256 {
            image.at(mode, HANDLERS + 8 * vector, iret);
        }
    }
    let pointers = [gpr::RBX, gpr::RSI, gpr::RDI, gpr::RSP, gpr::RBP];
    for register in 0..if mode.is_long() { 16 } else { 8 } {
        if !dice.one_in(4) {
            continue;
        }
        let value = match register {
            gpr::RCX => dice.below(20) as u64,
            _ if pointers.contains(&register) => {
                let region = dice.choose(&[M, D, STACK, KERNEL]);
                let base = if mode.is_8086() { 0 } else { region };
                base + dice.choose(&[0x100, 0x800, PAGE - 16]) + dice.below(32) as u64
            }
            _ => dice.number(),
        };
        cpu.gpr
            .set(register, if mode.is_long() { value } else { value & 0xffff_ffff });
    }
    if dice.one_in(3) {
        // Also TF, IOPL, NT and AC.
        let bits = dice.word() & 0x0004_7fd5 | 2;
        cpu.flags.set_bits(bits);
    }
    if dice.one_in(8) {
        cpu.event = Some(event(dice));
    }
    cpu.refresh();
    Scene { cpu, image: image.0 }
}

pub fn event(dice: &mut Dice) -> Event {
    if dice.one_in(3) {
        Event::nmi()
    } else {
        Event::external(dice.byte())
    }
}

struct Duet<'a> {
    dice: Dice<'a>,
    start: Cpu,
    watch: &'a mut Watch,
    prompt: &'a mut World,
    late: &'a mut World,
    other: &'a mut World,
    /// Instructions that the machines had retired before.
    base: u64,
    prompt_base: u64,
    /// The transaction that the late machine is in the middle of, as the prompt one has played it.
    current: Option<Transaction>,
    meddling: Meddling,
    /// That transaction was cancelled, and nothing has happened since.
    begins_anew: bool,
    /// It was cancelled some time.
    begun_before: bool,
    /// How much of the late machine's trace is older than its transaction.
    mark: usize,
    played: Played,
}

impl Duet<'_> {
    /// `None` if the play is broken off.
    fn play(&mut self) -> Option<()> {
        let mut entry = Entry::Resume;
        for _ in 0..OUTINGS {
            let steps = self.dice.choose(&[1, 1, 2, 3, 8, 40]);
            let exit = self.watch.over(self.late, entry, steps)?;
            let exit = exit.expect("a later pass sees what the first one saw");
            entry = match exit {
                Exit::Request(request) => self.asked(request)?,
                // Called for while it waited, before it was cancelled.
                Exit::Attention if std::mem::take(&mut self.begins_anew) => Entry::Resume,
                Exit::Attention => {
                    self.meddling.undo(self.late);
                    self.current = None;
                    self.begun_before = false;
                    self.follow()?;
                    if self.dice.is_spent() {
                        self.compare();
                        return Some(());
                    }
                    if self.dice.one_in(4) {
                        self.influence();
                    }
                    self.late.forget_reads_before_now();
                    self.mark = self.late.trace.len();
                    Entry::Resume
                }
                Exit::Halt | Exit::Shutdown | Exit::Elsewhere => {
                    self.follow()?;
                    assert_eq!(transaction(self.prompt).err(), Some(exit));
                    self.compare();
                    if exit == Exit::Shutdown || self.dice.is_spent() {
                        return Some(());
                    }
                    let event = event(&mut self.dice);
                    self.inject(event);
                    Entry::Resume
                }
            };
        }
        None
    }

    /// Lets the prompt machine go on to where the late one is, between two transactions or at the start of one.
    fn follow(&mut self) -> Option<()> {
        let retired = self.late.emulator.counters().instructions.wrapping_sub(self.base);
        for _ in 0..STEPS {
            let prompt = &self.prompt.emulator;
            let cpu = prompt.cpu();
            let paging = |cpu: &Cpu| {
                let cr0 = cpu.cr0.0 & (Cr0::PE | Cr0::PG | Cr0::WP);
                (cr0, cpu.cr3, cpu.cr4, cpu.efer)
            };
            if paging(cpu) != paging(&self.start) {
                return None;
            }
            // A loop comes by the same state again.
            let told = prompt.counters().instructions.wrapping_sub(self.prompt_base);
            if told >= retired && cpu == self.late.emulator.cpu() {
                return Some(());
            }
            if let Err(exit) = transaction(self.prompt) {
                // It will never get there.
                assert_same(self.late.emulator.cpu(), self.prompt.emulator.cpu());
                panic!("{exit:?} after {told} instructions, not {retired}");
            }
        }
        None
    }

    /// The late machine wants something.
    fn asked(&mut self, request: Request) -> Option<Entry> {
        self.begins_anew = false;
        let stores = self.late.emulator.record().is_empty() && matches!(request.direction, Direction::Write(_));
        if !stores && let Some(entry) = self.wait(request)? {
            return Some(entry);
        }
        // Come out as soon as the transaction is over.
        self.late.emulator.attention().call();
        Some(self.late.serve(request))
    }

    /// The late machine is kept waiting in the middle of an instruction. `Some(entry)` if that was cancelled.
    fn wait(&mut self, request: Request) -> Option<Option<Entry>> {
        self.played.waits += 1;
        if self.current.is_none() {
            self.follow()?;
            let told = transaction(self.prompt);
            self.current = Some(told.expect("a transaction that the late machine has begun"));
        }
        let current = self.current.as_ref().expect("just set");
        assert_same(self.late.emulator.cpu(), &current.before);
        let what = self.dice.byte();
        // Accessed bits that are set before it is cancelled are not set again: what it is told to do no longer fits.
        if what & 1 == 0 && !self.begun_before {
            self.meddling.meddle(self.late, current);
        }
        if what & 2 != 0 {
            self.bystanders(request);
        }
        if what & 0x0c == 0x0c {
            self.save(request);
        }
        Some((what & 0x70 == 0x70).then(|| self.cancel(request)))
    }

    /// All those who change nothing.
    fn bystanders(&mut self, request: Request) {
        let emulator = &mut self.late.emulator;
        let (cpu, record) = (emulator.cpu().clone(), emulator.record().to_vec());
        let counters = emulator.counters();
        assert!(!emulator.inject(Event::nmi()), "an instruction is in flight");
        {
            let mut aside = emulator.aside();
            let mut bytes = vec![0; self.dice.below(40)];
            let gpa = self.dice.below(SIZE) as u64;
            let _whether_ram = aside.read(gpa, &mut bytes);
            let linear = self.dice.choose(&[CODE, TABLES, M, D, STACK]) + self.dice.below(0x2000) as u64;
            let _whether_mapped = aside.translate(linear);
            let _whether_both = aside.read_linear(linear, &mut bytes);
        }
        let supplied = emulator.supply(&[0x90], Cause::Emulation);
        assert_eq!(supplied, Err(SupplyError::Busy));
        let stale = Entry::Answer(Answer {
            id: request.id ^ 1 << 40,
            reply: Reply::Value(self.dice.word()),
        });
        for entry in [Entry::Resume, stale] {
            let owed = emulator.run(entry);
            assert!(
                matches!(owed, Err(Error::AnswerOwed(id)) if id == request.id),
                "{owed:?}"
            );
        }
        assert_eq!(emulator.waiting_for(), Some(request));
        assert_eq!(emulator.record(), record);
        assert_same(emulator.cpu(), &cpu);
        let now = emulator.counters();
        assert_eq!(now.stale_answers, counters.stale_answers + 1);
        assert_eq!(
            (now.cancellations, now.replays),
            (counters.cancellations, counters.replays)
        );
    }

    /// Goes on in another process.
    fn save(&mut self, request: Request) {
        self.played.saved += 1;
        let retired = self.late.emulator.counters().instructions.wrapping_sub(self.base);
        self.other.take_over(self.late);
        std::mem::swap(&mut self.late, &mut self.other);
        self.base = self.late.emulator.counters().instructions.wrapping_sub(retired);
        assert_eq!(self.late.emulator.waiting_for(), Some(request));
    }

    /// Cancels the instruction in flight: it begins anew.
    fn cancel(&mut self, request: Request) -> Entry {
        self.played.cancelled += 1;
        self.begins_anew = true;
        self.begun_before = true;
        self.meddling.put_back(self.late);
        let emulator = &mut self.late.emulator;
        let before = emulator.cpu().clone();
        match self.dice.below(3) {
            0 => emulator.cancel(),
            1 => emulator.change(|_| ()),
            _ => emulator.set_cpu(before.clone()),
        }
        assert!(!emulator.is_in_flight() && emulator.record().is_empty() && emulator.waiting_for().is_none());
        assert_same(emulator.cpu(), &before);
        let stores = self.late.trace[self.mark..].iter().any(|asked| asked.store);
        assert!(!stores, "a device was written to");
        self.late.rewind_reads();
        self.late.trace.truncate(self.mark);
        // The answer comes all the same.
        let id = request.id;
        let reply = Reply::Value(self.dice.word());
        self.dice.choose(&[Entry::Resume, Entry::Answer(Answer { id, reply })])
    }

    /// Something happens between two instructions.
    fn influence(&mut self) {
        match self.dice.below(4) {
            0 | 1 => {
                let event = event(&mut self.dice);
                self.inject(event);
            }
            2 => {
                let (register, value) = (self.dice.below(8) as u8, self.dice.number() & 0xffff_ffff);
                for world in [&mut *self.prompt, &mut *self.late] {
                    world.emulator.change(|cpu| cpu.gpr.set(register, value));
                }
            }
            _ => {
                // Another CPU stores, anywhere but into page tables.
                let first = PAGING.end * PAGE as usize;
                let at = first + self.dice.below(SIZE - first - 8);
                let length = 1 + self.dice.below(8);
                let bytes: Vec<u8> = (0..length).map(|_| self.dice.byte()).collect();
                for world in [&mut *self.prompt, &mut *self.late] {
                    world.poke(at as u64, &bytes);
                }
            }
        }
    }

    fn inject(&mut self, event: Event) {
        self.played.events += 1;
        for world in [&mut *self.prompt, &mut *self.late] {
            // One that is raised already comes first, in both.
            let takes = world.emulator.cpu().event.is_none();
            assert_eq!(world.emulator.inject(event), takes);
        }
    }

    /// Both machines are at the same place, and alike.
    fn compare(&self) {
        assert_same(self.late.emulator.cpu(), self.prompt.emulator.cpu());
        assert_eq!(elsewhere(&self.late.trace), elsewhere(&self.prompt.trace));
        let (late, prompt) = (self.late.image(), self.prompt.image());
        // Page tables in a device take no accessed and dirty bits.
        let first = PAGING.end * PAGE as usize;
        let differs = (first..SIZE).find(|at| late[*at] != prompt[*at]);
        assert_eq!(differs.map(|at| (at, late[at], prompt[at])), None, "memory");
    }
}

/// Gets a machine out that delivers one exception after the other, or repeats one instruction, for ever: nobody calls then.
pub struct Watch {
    watched: Arc<Mutex<Option<Watched>>>,
}

/// Since when a machine runs, and how it is called.
type Watched = (Instant, Arc<Attention>);

impl Watch {
    /// Longer than anything else takes.
    const LONG: Duration = Duration::from_millis(20);

    pub fn new() -> Watch {
        let watched = Arc::new(Mutex::new(None::<Watched>));
        let weak = Arc::downgrade(&watched);
        // It ends soon after its stage is gone.
        std::thread::spawn(move || {
            while let Some(watched) = weak.upgrade() {
                let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, attention)) = watched.take_if(|(since, _)| since.elapsed() > Watch::LONG) {
                    attention.call();
                }
                drop(watched);
                std::thread::sleep(Watch::LONG / 4);
            }
        });
        Watch { watched }
    }

    /// Lets a machine run; `None` if it had to be called, or would deliver one exception after the other.
    pub fn over(&self, world: &mut World, entry: Entry, steps: u64) -> Option<Result<Exit, Error>> {
        let watched = || self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        *watched() = Some((Instant::now(), world.emulator.attention().clone()));
        let before = world.emulator.counters().events;
        let exit = world.emulator.run_at_most(entry, steps);
        let ends = watched().take().is_some() && world.emulator.counters().events - before < Emulator::DELIVERIES;
        ends.then_some(exit)
    }
}
