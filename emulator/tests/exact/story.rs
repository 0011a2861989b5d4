//! What an instruction does, told twice: by a machine all of whose memory is RAM, where nothing waits and most is done the
//! fast way; and by one all of whose memory is a device, which therefore is asked for every single access.
//!
//! The first says how everything must end. The second says which transaction reads and writes what, in what order.

use reprise_emulator::{Cpu, Entry, Exit, Space};

use crate::layout::{PAGE, PAGING, SIZE};
use crate::scene::Scene;
use crate::world::{Asked, Placement, World};

/// An instruction, an iteration of one, or the delivery of an event.
#[derive(Debug)]
pub struct Transaction {
    /// The CPU before it, and as long as it waits.
    pub before: Cpu,
    /// What it asks until it retires, in order.
    pub asks: Vec<Asked>,
    /// What it stores, in order.
    pub stores: Vec<Asked>,
}

impl Transaction {
    /// Marks the bytes that are read behind the first `position`.
    pub fn read_later(&self, position: usize) -> Vec<bool> {
        let mut later = vec![false; SIZE];
        let mut at = 0;
        for asked in &self.asks {
            for i in 0..u64::from(asked.size) {
                let address = (asked.address + i) as usize;
                if at >= position && asked.space == Space::Memory && address < SIZE {
                    later[address] = true;
                }
                at += 1;
            }
        }
        later
    }

    /// How often each byte is stored to.
    pub fn stored(&self) -> Vec<u8> {
        let mut stored = vec![0; SIZE];
        for asked in self.stores.iter().filter(|asked| asked.space == Space::Memory) {
            for i in 0..u64::from(asked.size) {
                if let Some(count) = stored.get_mut((asked.address + i) as usize) {
                    *count += 1;
                }
            }
        }
        stored
    }
}

#[derive(Debug)]
pub struct Story {
    pub exit: Exit,
    pub cpu: Cpu,
    pub image: Vec<u8>,
    /// What was asked of ports, MSRs and the like.
    pub elsewhere: Vec<Asked>,
    pub transactions: Vec<Transaction>,
}

/// The two machines that tell stories.
pub struct Tellers {
    ram: World,
    device: World,
}

impl Tellers {
    pub fn new() -> Tellers {
        Tellers {
            ram: World::new(Placement::Ram),
            device: World::new(Placement::Everything),
        }
    }

    pub fn tell(&mut self, scene: &Scene) -> Story {
        let Tellers { ram, device } = self;
        ram.load(&scene.cpu, &scene.image);
        let exit = ram.run();
        device.load(&scene.cpu, &scene.image);
        let (last, transactions) = tell(device);
        let story = Story {
            exit,
            cpu: ram.emulator.cpu().clone(),
            image: ram.image(),
            elsewhere: elsewhere(&ram.trace),
            transactions,
        };
        story.check(last, device);
        story
    }
}

/// Runs a machine all of whose memory is a device.
fn tell(device: &mut World) -> (Exit, Vec<Transaction>) {
    let mut transactions = Vec::new();
    let mut open: Option<Transaction> = None;
    let mut entry = Entry::Resume;
    for _ in 0..20_000 {
        match device.enter(entry) {
            Exit::Request(request) => {
                let before = device.emulator.cpu();
                let current = open.get_or_insert_with(|| Transaction {
                    before: before.clone(),
                    asks: Vec::new(),
                    stores: Vec::new(),
                });
                // Come out as soon as the transaction is over.
                device.emulator.attention().call();
                entry = device.serve(request);
                let asked = *device.trace.last().expect("just asked");
                if asked.store {
                    current.stores.push(asked);
                } else {
                    current.asks.push(asked);
                }
            }
            Exit::Attention => {
                transactions.extend(open.take());
                entry = Entry::Resume;
            }
            exit => {
                transactions.extend(open.take());
                return (exit, transactions);
            }
        }
    }
    panic!("there is no end, at {:#x}", device.emulator.cpu().rip);
}

/// What was asked of others than memory.
pub fn elsewhere(trace: &[Asked]) -> Vec<Asked> {
    trace
        .iter()
        .filter(|asked| asked.space != Space::Memory)
        .copied()
        .collect()
}

impl Story {
    /// A machine in another placement has come to the same end.
    pub fn check(&self, exit: Exit, world: &World) {
        assert_eq!(exit, self.exit);
        assert_same(world.emulator.cpu(), &self.cpu);
        assert_eq!(elsewhere(&world.trace), self.elsewhere);
        let mut image = world.image();
        // Page tables in a device take no accessed and dirty bits.
        for page in PAGING.filter(|page| !world.is_ram(*page as u64 * PAGE)) {
            let bytes = page * PAGE as usize..(page + 1) * PAGE as usize;
            image[bytes.clone()].copy_from_slice(&self.image[bytes]);
        }
        if image != self.image {
            let at = (0..SIZE).find(|at| image[*at] != self.image[*at]).expect("they differ");
            panic!("{at:#x} holds {:#x}, not {:#x}", image[at], self.image[at]);
        }
    }

    /// The transaction in flight: the first from `from` on with this CPU.
    pub fn transaction(&self, from: usize, cpu: &Cpu) -> usize {
        let found = self.transactions[from..].iter().position(|one| one.before == *cpu);
        from + found.unwrap_or_else(|| panic!("a transaction that waits has changed the CPU: {cpu:x?}"))
    }
}

pub fn assert_same(cpu: &Cpu, expected: &Cpu) {
    assert!(cpu == expected, "the CPU is\n{cpu:x?}, not\n{expected:x?}");
}
