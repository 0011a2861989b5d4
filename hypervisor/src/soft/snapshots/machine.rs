//! A machine that can be stopped anywhere, written to a file, and go on as another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use reprise_emulator::Cpu;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::super::world::World;
use super::guest::{self, ports};
use super::{Dice, mix};
use crate::state::LocalApicState;
use crate::testing::through_json;
use crate::{
    Access, Answer, GuestMemory, InterruptLine, IoRequest, Kick, Space, Vcpu, VcpuError, VcpuState, Vm, VmEntry,
    VmExit, VmState,
};

/// A guest that needs longer waits for what never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine with its devices.
pub(super) struct Machine {
    pub(super) world: World,
    pub(super) places: Vec<Place>,
}

/// A vCPU, its device, and how it goes on.
pub(super) struct Place {
    pub(super) vcpu: Box<dyn Vcpu>,
    pub(super) device: Device,
    pub(super) next: Next,
    lines: [Arc<dyn InterruptLine>; 2],
}

/// A device that gives another answer each time, and writes down what is done to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Device {
    asked: u64,
    /// The level-triggered line is up.
    raised: bool,
    /// Address, width, and what was read or written.
    pub(super) trace: Vec<(u64, u8, u64)>,
}

/// How a vCPU goes on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) enum Next {
    /// It owes nothing.
    Resume,
    /// The device has not been asked yet.
    Ask(IoRequest),
    /// The device has answered.
    Answer(Answer),
    /// The guest is done.
    Over,
    /// It has shut down.
    Shutdown,
}

/// A machine on disk, but for its memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) vm: VmState,
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) devices: Vec<Device>,
    pub(super) next: Vec<Next>,
}

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// When the guest is done.
    Over,
    /// At this device access, its device asked or not.
    Access {
        /// Its number from here.
        number: u64,
        /// Whether the device is asked before.
        asked: bool,
    },
    /// Right after the instruction that makes this device access.
    AfterAccess(u64),
    /// After this time.
    Time(Duration),
}

/// What a machine leaves behind that has come to its end.
#[derive(Debug, PartialEq)]
pub(super) struct Left {
    pub(super) memory: Vec<u8>,
    pub(super) cpus: Vec<Cpu>,
    pub(super) local_apics: Vec<LocalApicState>,
    pub(super) traces: Vec<Vec<(u64, u8, u64)>>,
}

impl Machine {
    /// One with a random guest.
    pub(super) fn new(vcpus: u32, dice: &mut Dice) -> Self {
        let world = World::with(vcpus, guest::memory());
        let cpus = guest::load(&world, vcpus, dice);
        Self::of(world, cpus)
    }

    fn of(world: World, vcpus: Vec<Box<dyn Vcpu>>) -> Self {
        let places = vcpus.into_iter().zip(0..).map(|(vcpu, index)| Place {
            vcpu,
            device: Device::default(),
            next: Next::Resume,
            lines: guest::lines(index).map(|line| world.vm.interrupt_line(line).unwrap()),
        });
        let places = places.collect();
        Self { world, places }
    }

    /// Runs all vCPUs until one of them comes to that point, and then stops all; whether the guest is done.
    ///
    /// # Errors
    /// That of the first vCPU which cannot go on.
    pub(super) fn run(&mut self, until: Until) -> Result<bool, VcpuError> {
        let Self { world, places } = self;
        let stop = Stop {
            stopped: AtomicBool::new(false),
            accesses: AtomicU64::new(0),
            until,
            kicks: places.iter().map(|place| place.vcpu.kick()).collect(),
        };
        let mut late = false;
        thread::scope(|scope| {
            let spawn = |place| scope.spawn(|| Place::run(place, world, &stop));
            let threads: Vec<_> = places.iter_mut().map(spawn).collect();
            if let Until::Time(time) = until {
                thread::sleep(time);
                stop.now();
            }
            let begin = Instant::now();
            while !threads.iter().all(|thread| thread.is_finished()) {
                thread::sleep(Duration::from_micros(100));
                if begin.elapsed() > PATIENCE {
                    stop.now();
                    late = true;
                }
            }
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("a vCPU's thread does not panic"))
        })?;
        let next: Vec<_> = self.places.iter().map(|place| place.next).collect();
        assert!(
            !late,
            "the guest waits for ever: {next:?}, {:x?}",
            self.world.vm.state()
        );
        Ok(self.places.iter().all(|place| place.next == Next::Over))
    }

    /// Whether a vCPU has shut down, where, by a triple fault.
    pub(super) fn has_shut_down(&self) -> Option<Box<Cpu>> {
        let place = self.places.iter().find(|place| place.next == Next::Shutdown)?;
        place.vcpu.cpu().ok()
    }

    /// Pauses the machine, whose vCPUs have stopped, and saves it.
    pub(super) fn save(&self) -> Saved {
        self.world.vm.set_paused(true);
        Saved {
            devices: self.places.iter().map(|place| place.device.clone()).collect(),
            vm: self.world.vm.state().unwrap(),
            vcpus: self.places.iter().map(|place| place.vcpu.state().unwrap()).collect(),
            next: self.places.iter().map(|place| place.next).collect(),
        }
    }

    /// Another machine, over a copy of this one's memory, that went by way of a file.
    pub(super) fn reborn(&self, dice: &mut Dice) -> Self {
        let saved = self.save();
        let other = Self::restored(through_json(&saved), &self.world.memory, dice).expect("it was saved by a machine");
        assert_eq!(other.save(), saved, "the other machine is in the same state");
        other.unpause();
        other
    }

    /// Lets the clocks of a machine go on that was restored.
    pub(super) fn unpause(&self) {
        self.world.vm.set_paused(false);
    }

    /// The machine that was saved, over a copy of its memory, paused.
    ///
    /// # Errors
    /// Why it cannot be restored.
    pub(super) fn restored(saved: Saved, memory: &GuestMemory, dice: &mut Dice) -> Result<Self, VcpuError> {
        let world = World::with(saved.vcpus.len() as u32, guest::copy(memory));
        let state = |error| match error {
            crate::HypervisorError::State { source } => VcpuError::State { source },
            error => panic!("{error}"),
        };
        world.vm.restore(&saved.vm).map_err(state)?;
        let vcpus = (0..saved.vcpus.len()).map(|index| world.vm.create_vcpu(index as u32).unwrap());
        let vcpus = vcpus.collect();
        let mut machine = Self::of(world, vcpus);
        let devices_first = dice.one_in(2);
        if devices_first {
            machine.plug_in(saved.devices.clone());
        }
        for ((place, state), next) in machine.places.iter_mut().zip(saved.vcpus).zip(&saved.next) {
            place.vcpu.restore(state)?;
            place.next = match (place.vcpu.waiting(), next) {
                (Some(own), Next::Ask(request)) if own == *request => *next,
                (Some(own), Next::Answer(answer)) if own.id == answer.id => *next,
                (Some(own), Next::Over) if own.address == ports::DONE => *next,
                // Spoilt: the vCPU knows best.
                (Some(own), _) => Next::Ask(own),
                (None, _) => Next::Resume,
            };
        }
        if !devices_first {
            machine.plug_in(saved.devices);
        }
        Ok(machine)
    }

    fn plug_in(&mut self, devices: Vec<Device>) {
        for (place, device) in self.places.iter_mut().zip(devices) {
            let [level, _] = &place.lines;
            level.set(device.raised);
            place.device = device;
        }
    }

    /// What is left when the guest is done.
    pub(super) fn left(&self) -> Left {
        let local_apic = |place: &Place| {
            let mut state = place.vcpu.state().unwrap().local_apic;
            assert_eq!((state.timer.expires_at, state.timer.tsc_deadline), (None, 0));
            state.timer.initial_count = 0;
            state
        };
        Left {
            memory: guest::compared(&self.world.memory),
            cpus: self.places.iter().map(|place| *place.vcpu.cpu().unwrap()).collect(),
            local_apics: self.places.iter().map(local_apic).collect(),
            traces: self.places.iter().map(|place| place.device.trace.clone()).collect(),
        }
    }
}

/// Stops all vCPUs.
struct Stop {
    stopped: AtomicBool,
    accesses: AtomicU64,
    until: Until,
    kicks: Vec<Arc<dyn Kick>>,
}

impl Stop {
    fn now(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.kicks.iter().for_each(|kick| kick.kick());
    }

    fn has_come(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

impl Place {
    fn run(&mut self, world: &World, stop: &Stop) -> Result<(), VcpuError> {
        loop {
            let entry = match self.next {
                Next::Over => return Ok(()),
                Next::Shutdown => {
                    stop.now();
                    return Ok(());
                }
                Next::Resume => VmEntry::Resume,
                Next::Answer(answer) => VmEntry::Answer(answer),
                Next::Ask(request) => VmEntry::Answer(Answer {
                    id: request.id,
                    value: self.ask(&request, world),
                }),
            };
            let exit = self.vcpu.run(entry).inspect_err(|_| stop.now())?;
            self.next = Next::Resume;
            match exit {
                VmExit::Io(request) if request.address == ports::DONE => self.next = Next::Over,
                VmExit::Io(request) => {
                    self.next = Next::Ask(request);
                    let number = stop.accesses.fetch_add(1, Ordering::SeqCst);
                    match stop.until {
                        Until::Access { number: last, asked } if number == last => {
                            if asked {
                                let value = self.ask(&request, world);
                                self.next = Next::Answer(Answer { id: request.id, value });
                            }
                            stop.now();
                        }
                        Until::AfterAccess(last) if number == last => {
                            stop.now();
                            continue;
                        }
                        _ => (),
                    }
                    if stop.has_come() {
                        return Ok(());
                    }
                }
                VmExit::Interrupted if stop.has_come() => return Ok(()),
                VmExit::Interrupted => (),
                VmExit::Shutdown => self.next = Next::Shutdown,
            }
        }
    }

    fn ask(&mut self, request: &IoRequest, world: &World) -> u64 {
        let [level, edge] = &self.lines;
        let Self { device, .. } = self;
        match (request.space, request.address) {
            (Space::Port, ports::RAISE) => device.raised = true,
            (Space::Port, ports::STATUS) => device.raised = false,
            (Space::Port, ports::PULSE) => edge.pulse(),
            _ => (),
        }
        level.set(device.raised);
        device.ask(request, world)
    }
}

impl Device {
    fn ask(&mut self, request: &IoRequest, world: &World) -> u64 {
        let (address, size) = (request.address, request.size);
        let ones = u64::MAX >> (64 - 8 * u32::from(size));
        match request.access {
            Access::Read => {
                let value = self.number() & ones;
                self.trace.push((address, size, value));
                value
            }
            Access::Write(value) => {
                self.trace.push((address, size, value));
                0
            }
            Access::ReadTo { count, .. } | Access::WriteFrom { count, .. } => {
                // Often not all of them, sometimes none.
                let done = match self.number() % 4 {
                    0 => 0,
                    1 => count,
                    number => 1 + (number >> 2) as u32 % count,
                };
                for element in 0..done {
                    self.element(request, element, world);
                }
                done.into()
            }
        }
    }

    fn element(&mut self, request: &IoRequest, index: u32, world: &World) {
        let (address, guest) = request.element(index).unwrap();
        let size = usize::from(request.size);
        let mut bytes = self.number().to_le_bytes();
        // A spoilt request names RAM that there is not; nothing is moved then.
        if matches!(request.access, Access::ReadTo { .. }) {
            let _ = world.memory.write_slice(&bytes[..size], GuestAddress(guest));
            world.vm.memory_written(guest, size as u64);
        } else {
            let _ = world.memory.read_slice(&mut bytes[..size], GuestAddress(guest));
        }
        bytes[size..].fill(0);
        self.trace.push((address, request.size, u64::from_le_bytes(bytes)));
    }

    fn number(&mut self) -> u64 {
        self.asked += 1;
        mix(self.asked)
    }
}
