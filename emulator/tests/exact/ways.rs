//! Random code the fast way and the careful way at once: both machines are all RAM, one of them takes no other way than the
//! careful one, and they are compared after every block.

use reprise_emulator::{Cpu, Entry, Exit};

use crate::dice::Dice;
use crate::duet::{Watch, compose, event};
use crate::story::assert_same;
use crate::world::{Placement, World};

/// Steps of the careful machine for one of the fast one, at most: what repeats counts once there.
const STEPS: u64 = 5000;
/// Blocks of a play, at most.
const BLOCKS: usize = 60;

/// Both machines, to be used for many plays.
pub struct Ways {
    watch: Watch,
    fast: World,
    careful: World,
}

impl Ways {
    pub fn new() -> Ways {
        let mut careful = World::new(Placement::Ram);
        careful.emulator.set_careful(true);
        Ways {
            watch: Watch::new(),
            fast: World::new(Placement::Ram),
            careful,
        }
    }

    /// Plays what `bytes` say; how many blocks were compared.
    pub fn play(&mut self, bytes: &[u8]) -> usize {
        let mut dice = Dice::new(bytes);
        let scene = compose(&mut dice);
        for world in [&mut self.fast, &mut self.careful] {
            world.load(&scene.cpu, &scene.image);
        }
        let bases = [&self.fast, &self.careful].map(|world| world.emulator.counters().instructions);
        let mut blocks = 0;
        while blocks < BLOCKS && !dice.is_spent() {
            let steps = 1 + dice.below(24) as u64;
            let Some(exit) = run(&self.watch, &mut self.fast, steps) else {
                break;
            };
            let retired = self.fast.emulator.counters().instructions - bases[0];
            if !self.catch_up(bases[1], retired, exit) {
                break;
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

    /// Lets the careful machine go to where the fast one is. False if that takes too long: a repetition.
    fn catch_up(&mut self, base: u64, retired: u64, exit: Exit) -> bool {
        for _ in 0..STEPS {
            let careful = &self.careful.emulator;
            let told = careful.counters().instructions - base;
            if told >= retired && is_same(self.fast.emulator.cpu(), careful.cpu()) {
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
        let told = self.careful.emulator.counters().instructions - base;
        if told < retired + STEPS / 2 {
            return false;
        }
        assert_same(self.careful.emulator.cpu(), self.fast.emulator.cpu());
        false
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
