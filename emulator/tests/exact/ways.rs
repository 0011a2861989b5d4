//! Random code the fast way and the careful way at once: both machines are all RAM, one of them takes no other way than the
//! careful one, and they are compared after every block.

use reprise_emulator::cpu::{Cr0, Seg};
use reprise_emulator::translate::Translation;
use reprise_emulator::{Cpu, Entry, Exit};
use vm_memory::{Bytes, GuestAddress};

use crate::delivery;
use crate::dice::Dice;
use crate::duet::{Watch, compose, event};
use crate::layout::{PAGE, PAGES, PAGING, TABLES, pages_of};
use crate::scene::Scene;
use crate::story::assert_same;
use crate::world::{Placement, World, cpuid};

/// Steps of the careful machine for one of the fast one, at most: what repeats counts once there.
const STEPS: u64 = 100_000;
/// Blocks of a play, at most.
const BLOCKS: usize = 60;

/// Translated code leaves the flags that the architecture leaves undefined as this processor does; the interpreter has those
/// of the modelled one.
pub fn is_modelled_host() -> bool {
    let vendor = core::arch::x86_64::__cpuid(0);
    let version = core::arch::x86_64::__cpuid(1).eax;
    let family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
    let is_modelled = (vendor.ebx, family) == (u32::from_le_bytes(*b"Auth"), 25);
    if !is_modelled {
        println!("not compared: flags that are undefined are others on this processor");
    }
    is_modelled
}

/// Both machines, to be used for many plays.
pub struct Ways {
    watch: Watch,
    fast: World,
    careful: World,
}

impl Ways {
    /// The fast way by the interpreter.
    pub fn new() -> Ways {
        Ways::with(None)
    }

    /// The fast way by translated code.
    pub fn translated() -> Ways {
        Ways::with(Some(Translation {
            threshold: 0,
            ..Translation::default()
        }))
    }

    /// Instructions that were executed in translated code.
    pub fn instructions_translated(&self) -> u64 {
        self.fast.emulator.counters().translated
    }

    fn with(translation: Option<Translation>) -> Ways {
        let mut careful = World::new(Placement::Ram);
        careful.emulator.set_careful(true);
        let mut fast = World::new(Placement::Ram);
        fast.emulator.set_translation(translation).expect("executable memory");
        Ways {
            watch: Watch::new(),
            fast,
            careful,
        }
    }

    /// Plays what `bytes` say; how many blocks were compared.
    pub fn play(&mut self, bytes: &[u8]) -> usize {
        let mut dice = Dice::new(bytes);
        let scene = compose(&mut dice);
        self.compare(dice, &scene)
    }

    /// As [`play`](Ways::play), but page tables, descriptor tables, task state and registers are damaged before, and an event
    /// has to find its way through them.
    pub fn damage(&mut self, bytes: &[u8]) -> usize {
        let mut dice = Dice::new(bytes);
        let mut scene = compose(&mut dice);
        for _ in 0..1 + dice.below(8) {
            hurt(&mut dice, &mut scene);
        }
        scene.cpu.refresh();
        scene.cpu.xcr0 &= 3;
        if scene.cpu.check(&cpuid()).is_err() {
            return 0;
        }
        if dice.one_in(2) {
            scene.cpu.event = Some(event(&mut dice));
        }
        self.compare(dice, &scene)
    }

    /// As [`play`](Ways::play), but what comes first is an event, delivered out of a random state through random gates.
    pub fn deliver(&mut self, bytes: &[u8]) -> usize {
        let mut dice = Dice::new(bytes);
        let mut scene = compose(&mut dice);
        delivery::arrange(&mut dice, &mut scene);
        scene.cpu.refresh();
        scene.cpu.xcr0 &= 3;
        if scene.cpu.check(&cpuid()).is_err() {
            return 0;
        }
        self.compare(dice, &scene)
    }

    fn compare(&mut self, mut dice: Dice, scene: &Scene) -> usize {
        for world in [&mut self.fast, &mut self.careful] {
            world.load(&scene.cpu, &scene.image);
        }
        let bases = [&self.fast, &self.careful].map(|world| world.emulator.counters().instructions);
        let mut blocks = 0;
        while blocks < BLOCKS && !dice.is_spent() {
            let steps = 1 + dice.below(24) as u64;
            // What takes too long, a repetition or one exception after the other, is broken off.
            let Some(exit) = run(&self.watch, &mut self.fast, steps) else {
                return blocks;
            };
            if self.has_remapped(&scene.image) {
                return blocks;
            }
            let retired = self.fast.emulator.counters().instructions - bases[0];
            if !self.catch_up(bases[1], retired, exit) {
                return blocks;
            }
            blocks += 1;
            match exit {
                Exit::Halt => {
                    let event = event(&mut dice);
                    for world in [&mut self.fast, &mut self.careful] {
                        world.emulator.wake();
                        assert!(world.emulator.inject(event));
                    }
                }
                Exit::Shutdown => break,
                _ => {}
            }
        }
        assert!(self.fast.image() == self.careful.image(), "memory differs");
        assert!(self.fast.trace == self.careful.trace, "devices were asked otherwise");
        blocks
    }

    /// The program has written page tables. What it sees until the TLB forgets may be either, and the careful way has none.
    fn has_remapped(&self, before: &[u8]) -> bool {
        const PAGE_SIZE: usize = PAGE as usize;
        const ACCESSED_AND_DIRTY: u8 = 0x60;
        let mut page = [0; PAGE_SIZE];
        PAGING.map(|number| number * PAGE_SIZE).any(|at| {
            let memory = self.fast.ram.memory();
            memory
                .read_slice(&mut page, GuestAddress(at as u64))
                .expect("all is RAM");
            let before = &before[at..at + PAGE_SIZE];
            page != before
                && page.iter().zip(before).enumerate().any(|(byte, (new, old))| {
                    let marks = if byte % 4 == 0 { ACCESSED_AND_DIRTY } else { 0 };
                    (new ^ old) & !marks != 0
                })
        })
    }

    /// Lets the careful machine go to where the fast one is. False if that takes too long: a repetition.
    fn catch_up(&mut self, base: u64, retired: u64, exit: Exit) -> bool {
        for _ in 0..STEPS {
            let careful = &self.careful.emulator;
            let told = careful.counters().instructions - base;
            // A loop comes to the same state again and again: repetitions count otherwise here, what devices were asked does not.
            let has_asked = self.careful.trace.len() >= self.fast.trace.len();
            if told >= retired && has_asked && is_same(self.fast.emulator.cpu(), careful.cpu()) {
                return true;
            }
            match run(&self.watch, &mut self.careful, 1) {
                Some(Exit::Attention) => {}
                Some(own) => {
                    assert_same(self.careful.emulator.cpu(), self.fast.emulator.cpu());
                    assert_eq!(own, exit);
                    return true;
                }
                None => return false,
            }
        }
        let (careful, fast) = (self.careful.emulator.cpu(), self.fast.emulator.cpu());
        // In the middle of the same repetition.
        if careful.rip != fast.rip {
            assert_same(careful, fast);
        }
        false
    }
}

/// Damages one thing.
fn hurt(dice: &mut Dice, scene: &mut Scene) {
    let Scene { cpu, image } = scene;
    let mut put = |at: u64, value: u64| image[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
    match dice.below(10) {
        0..=2 => {
            let pages = PAGING.len();
            let page = PAGING.start + dice.below(pages);
            let next = dice.below(PAGES) as u64 * PAGE;
            let entry = dice.choose(&[0, 1, 2, 511, 256]) + dice.below(2) as u64;
            let flags = dice.word() & 0x8000_0000_0000_0fff | u64::from(!dice.one_in(4));
            put(page as u64 * PAGE + 8 * (entry % 512), next | flags);
        }
        3 | 4 => {
            let pages = pages_of(TABLES);
            let page = pages[dice.below(pages.len())] as u64;
            let at = page * PAGE + 8 * dice.below(512) as u64;
            put(at, dice.word());
        }
        5 => {
            let bits = [Cr0::WP, Cr0::AM, Cr0::EM, Cr0::TS, Cr0::NE, Cr0::PG, Cr0::PE];
            cpu.cr0.0 ^= dice.choose(&bits);
        }
        6 => cpu.cr4.0 ^= 1 << dice.below(23),
        7 => {
            let seg = dice.choose(&Seg::ALL);
            let segment = &mut cpu.segments[seg];
            segment.attributes.0 ^= 1 << dice.below(16);
            if dice.one_in(2) {
                segment.limit = dice.word() as u32;
            }
        }
        8 => {
            let mut register = cpu.tr;
            match dice.below(4) {
                0 => register.limit = dice.below(0x100) as u32,
                1 => register.base ^= 1 << dice.below(48),
                2 => register.attributes.0 ^= 1 << dice.below(16),
                _ => register.selector ^= 1 << dice.below(16),
            }
            cpu.tr = register;
        }
        _ => {
            let table = if dice.one_in(2) { &mut cpu.idtr } else { &mut cpu.gdtr };
            table.limit = dice.word() as u16;
        }
    }
}

/// As most states differ, the cheap comparisons come first.
fn is_same(a: &Cpu, b: &Cpu) -> bool {
    a.rip == b.rip && a == b
}

/// Runs until the next boundary between instructions at which the machine comes out, and answers what it asks meanwhile;
/// `None` if it had to be called.
fn run(watch: &Watch, world: &mut World, steps: u64) -> Option<Exit> {
    let mut entry = Entry::Resume;
    loop {
        let exit = watch.over(world, entry, steps)?;
        match exit.expect("a later pass sees what the first one saw") {
            Exit::Request(request) => {
                world.emulator.attention().call();
                entry = world.serve(request);
            }
            exit => return Some(exit),
        }
    }
}
