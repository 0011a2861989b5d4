//! A virtual machine: memory, vCPU threads, devices, built from a configuration.
//!
//! # Invariants
//! - A machine ends once, with one [`MachineEnd`]; its vCPUs are then on their way out.
//! - Nothing here waits for a guest or a device without end: a vCPU that waits for a late answer can be held and stopped.
//!
//! # Life
//! [`Machine::new`] loads the kernel and makes everything; the vCPUs wait. -[`start`](Machine::start)-> running
//! -[`pause`](Machine::pause)-> held -[`resume`](Machine::resume)-> running -[`stop`](Machine::stop)-> gone. While it is held
//! it can be saved, and [`Machine::restore`] makes another one of that, held too. A machine is never reset: the guest's wish for it is an end, after which the machine is built anew.

mod board;
#[cfg(test)]
pub(crate) mod double;
mod end;
mod error;
pub(crate) mod gate;
mod memory;
mod parked;
mod postmortem;
mod saved;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use reprise_devices::MachineEvent;
use reprise_emulator::Cpu;
use reprise_hypervisor::{GuestMemory, Hypervisor, HypervisorError, Vcpu, Vm, VmSettings};

use crate::acpi::{self, Description};
use crate::boot::{self, Payload};
use crate::config::{ConsoleMode, DeviceSpec, VmConfig};
use crate::console::{Console, Consoles};
use crate::events::Events;
use crate::profile::Profile;
use crate::sandbox;
use crate::vcpu_loop::{self, Ended, Outside};

use board::{Board, Parts};
pub use board::{BoardError, BoardStateError, OnEject};
pub use end::MachineEnd;
use end::{Fallen, OnEnd, Shared, explain};
pub use error::MachineError;
pub(crate) use gate::{Seat, Waited};
pub use memory::MemoryError;
pub(crate) use parked::Parked;
use saved::MachineState;

/// How long a kicked vCPU may take to come out before a pause is given up. It comes out between two instructions.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long counters may wait for a vCPU to tell its own.
const COUNTERS_PATIENCE: Duration = Duration::from_millis(50);

/// What is not part of a configuration.
#[derive(Debug, Clone, Default)]
pub struct MachineOptions {
    /// Whether a byte written to port 0xF4 ends the machine.
    pub debug_exit: bool,
    /// Where the serial port leads, instead of what the configuration says. It may be another machine's before and after.
    pub console: Option<Arc<Console>>,
    /// The same for the virtio console, if the configuration has one.
    pub virtio_console: Option<Arc<Console>>,
    /// Where it is told what befalls the machine besides its end.
    pub events: Events,
    /// Who looks at what the guest executes.
    pub profile: Option<Arc<Profile>>,
}

/// What a machine begins with.
enum Begin {
    /// The bootstrap processor in this state, and the others waiting for it.
    Boot(Box<Cpu>),
    /// Everything as it was.
    Restore(Box<MachineState>),
}

/// A built virtual machine.
pub struct Machine {
    vm: Arc<dyn Vm>,
    memory: GuestMemory,
    board: Arc<Board>,
    consoles: Consoles,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Machine {
    /// Builds the machine that `config`, a valid configuration, describes: loads the kernel, writes the tables, makes the
    /// devices and the vCPUs, whose threads wait for [`start`](Self::start).
    ///
    /// `on_end` is called once, from any of the machine's threads, when the machine ends by itself. It must not wait for
    /// the machine, nor stop or drop it: it tells somebody else.
    ///
    /// # Errors
    /// [`MachineError`] naming what is in the way; nothing is left behind.
    pub fn new(
        config: &VmConfig,
        hypervisor: &dyn Hypervisor,
        options: MachineOptions,
        on_end: OnEnd,
    ) -> Result<Self, MachineError> {
        let kernel = config.payload.kernel.as_deref().ok_or(MachineError::NoKernel)?;
        let vcpus = config.cpus.boot_vcpus;
        check_vcpus(vcpus, hypervisor)?;
        let memory = memory::map(config.memory.size, memory::Sharing::of(config.shares_memory()))?;
        let serial = options.console.is_some() || config.serial.mode != ConsoleMode::Off;
        let rsdp = acpi::write(
            &memory,
            Description {
                vcpus,
                serial,
                memory: config.memory.size,
            },
        )?;
        let payload = Payload {
            kernel,
            initramfs: config.payload.initramfs.as_deref(),
            command_line: config.payload.cmdline.as_deref().unwrap_or(""),
            rsdp,
        };
        let entry = boot::load(&memory, &payload)?;
        let begin = Begin::Boot(entry.cpu());
        Self::build(config, hypervisor, options, on_end, memory, begin)
    }

    fn build(
        config: &VmConfig,
        hypervisor: &dyn Hypervisor,
        options: MachineOptions,
        on_end: OnEnd,
        memory: GuestMemory,
        begin: Begin,
    ) -> Result<Self, MachineError> {
        let vcpus = config.cpus.boot_vcpus;
        check_vcpus(vcpus, hypervisor)?;
        // Late, so that no terminal is made raw for a machine that cannot be built.
        let open = |given: Option<Arc<Console>>, config| match (given, &begin) {
            (Some(console), _) => Ok(Some(console)),
            (None, Begin::Boot(_)) => Console::open(config),
            (None, Begin::Restore(_)) => Console::open_again(config),
        };
        let consoles = Consoles {
            serial: open(options.console, &config.serial).map_err(|source| MachineError::Console { source })?,
            virtio: open(
                options
                    .virtio_console
                    .filter(|_| config.console.mode != ConsoleMode::Off),
                &config.console,
            )
            .map_err(|source| MachineError::VirtioConsole { source })?,
        };
        for (device, console, mode) in [
            ("serial", &consoles.serial, config.serial.mode),
            ("console", &consoles.virtio, config.console.mode),
        ] {
            // Nobody could know otherwise.
            if let (ConsoleMode::Pty, Some(path)) = (mode, console.as_ref().and_then(|console| console.path())) {
                let path = path.display().to_string();
                tracing::info!(device, path, "a pseudo-terminal is at the other end");
                options.events.emit(device, "pty", &[("path", &path)]);
            }
        }
        let vm = hypervisor.create_vm(VmSettings {
            vcpus,
            memory: memory.clone(),
            hyperv: config.cpus.kvm_hyperv,
            model: config.cpus.model.into(),
        })?;
        vm.translate(config.cpus.translate);
        if let Some(profile) = &options.profile
            && !vm.profile(profile.period(), profile.clone())
        {
            return Err(MachineError::Profile);
        }
        let shared = Arc::new(Shared::new(vcpus as usize, on_end));
        let parts = Parts {
            config,
            memory: &memory,
            console: consoles.serial.as_deref(),
            virtio_console: consoles.virtio.as_ref(),
            debug_exit: options.debug_exit,
            events: Arc::new({
                let shared = Arc::clone(&shared);
                move |event: MachineEvent| shared.end(event.into())
            }),
        };
        let board = Arc::new(Board::new(&vm, &parts)?);
        let mut cpus: Vec<Box<dyn Vcpu>> = Vec::new();
        for index in 0..vcpus {
            cpus.push(vm.create_vcpu(index)?);
        }
        match begin {
            // The others wait for INIT and SIPI, in the state that the hypervisor gave them.
            Begin::Boot(cpu) => {
                let first = |source| MachineError::FirstState { vcpu: 0, source };
                cpus[0].set_cpu(&cpu).map_err(first)?;
            }
            Begin::Restore(state) => saved::restore(*state, &*vm, &board, &mut cpus, &shared.gate)?,
        }
        shared
            .kicks
            .get_or_init(|| cpus.iter().map(|vcpu| vcpu.kick()).collect());
        let mut machine = Self {
            vm,
            memory,
            board,
            consoles,
            shared,
            threads: Vec::new(),
        };
        for (vcpu, index) in cpus.into_iter().zip(0..) {
            // Should this fail, dropping the machine ends the threads that were started.
            let thread = machine.spawn(vcpu, index, options.events.clone());
            machine
                .threads
                .push(thread.map_err(|source| MachineError::Thread { vcpu: index, source })?);
        }
        let on_leave = || {
            let shared = Arc::downgrade(&machine.shared);
            move || {
                if let Some(shared) = shared.upgrade() {
                    shared.end(MachineEnd::ConsoleLeft);
                }
            }
        };
        if let (Some(console), Some(serial)) = (&machine.consoles.serial, &machine.board.serial) {
            console.attach(serial, on_leave());
        }
        if let (Some(console), Some(device)) = (&machine.consoles.virtio, machine.board.virtio_console()) {
            console.attach(device, on_leave());
        }
        Ok(machine)
    }

    /// Lets the vCPUs run, for the first time.
    pub fn start(&self) {
        self.shared.gate.open();
    }

    /// Holds every vCPU between two instructions, or where it waits for a device, and stops the guest's clocks.
    ///
    /// # Errors
    /// [`MachineError::Unstoppable`]; the machine then goes on.
    pub fn pause(&self) -> Result<(), MachineError> {
        self.shared.gate.hold();
        self.shared.kick();
        if let Err(vcpu) = self.shared.gate.wait_held(PATIENCE) {
            self.shared.gate.open();
            return Err(MachineError::Unstoppable { vcpu });
        }
        self.vm.set_paused(true);
        self.board.set_paused(true);
        Ok(())
    }

    /// Goes on after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.board.set_paused(false);
        self.vm.set_paused(false);
        self.shared.gate.open();
    }

    /// Adds the PCI device that `spec` asks for, called `name`, and tells the guest. Its device number is returned.
    ///
    /// # Errors
    /// [`BoardError`] naming what is in the way; the machine is as before then.
    pub fn add_device(&self, name: &str, spec: &DeviceSpec) -> Result<u8, BoardError> {
        self.board.plug(name, spec)
    }

    /// Asks the guest to let go of the PCI device called `name`; who asks again reminds it. False if there is no such device.
    #[must_use]
    pub fn remove_device(&self, name: &str) -> bool {
        self.board.unplug(name)
    }

    /// Changes the size of the PCI device called `name`: a disk's capacity, or what a balloon takes.
    ///
    /// # Errors
    /// [`BoardError`] naming what is in the way; nothing has changed then.
    pub fn resize_device(&self, name: &str, bytes: u64) -> Result<(), BoardError> {
        self.board.resize(name, bytes)
    }

    /// The devices that the guest was asked to let go of and has not.
    #[must_use]
    pub fn going(&self) -> Vec<String> {
        self.board.asked_for()
    }

    /// Calls `tell`, from now on, when the guest has let go of a device: from a vCPU's thread, so that it must not wait.
    pub fn on_eject(&self, tell: OnEject) {
        self.board.on_eject(tell);
    }

    /// The devices that the guest has let go of since this was asked last; they are gone, and their names are free.
    #[must_use]
    pub fn take_ejected(&self) -> Vec<String> {
        self.board.take_ejected()
    }

    /// The device numbers of the PCI devices by name.
    #[must_use]
    pub fn devices(&self) -> BTreeMap<String, u8> {
        self.board.device_numbers()
    }

    /// Presses the ACPI power button. What comes of it is the guest's decision.
    pub fn power_button(&self) {
        self.board.acpi.press_power_button();
    }

    /// Whether hot code of the guest runs as code of the host: the configuration asks for it, the processor is software, and
    /// the host lets it.
    #[must_use]
    pub fn translates(&self) -> bool {
        self.vm.translates()
    }

    /// Figures by device and name: those of the bus and the devices, and of each vCPU as `vcpu0`, `vcpu1`, …
    pub fn counters(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let named = |figures: Vec<(&'static str, u64)>| -> BTreeMap<String, u64> {
            figures
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()
        };
        let devices = self.board.counters().into_iter();
        let mut all: BTreeMap<_, _> = devices
            .map(|(device, figures)| (device, named(figures.into_iter().collect())))
            .collect();
        let vcpus = self.shared.gate.counters(|| self.shared.kick(), COUNTERS_PATIENCE);
        for (index, figures) in vcpus.into_iter().enumerate() {
            all.insert(format!("vcpu{index}"), named(figures));
        }
        all
    }

    /// The host's ends of the consoles.
    #[must_use]
    pub fn consoles(&self) -> Consoles {
        self.consoles.clone()
    }

    /// Ends every thread, and gives memory and devices back. Output that the console has not taken yet is waited for, but
    /// not without end. Dropping a machine does the same.
    pub fn stop(self) {
        drop(self);
    }

    fn spawn(&self, mut vcpu: Box<dyn Vcpu>, index: u32, events: Events) -> io::Result<JoinHandle<()>> {
        let (vm, memory) = (Arc::clone(&self.vm), self.memory.clone());
        let (board, shared) = (Arc::clone(&self.board), Arc::clone(&self.shared));
        let seat = shared.gate.seat(index as usize);
        vcpu.on_call(shared.gate.call(index as usize));
        thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
            // Should this thread panic, the machine must not go on without it.
            let _fallen = Fallen { shared: &shared, index };
            sandbox::confine(sandbox::Kind::Vcpu);
            let ended = if seat.may_go_on(&*vcpu) {
                let outside = Outside {
                    bus: &board.bus,
                    memory: &memory,
                    vm: &*vm,
                    events: &events,
                };
                vcpu_loop::run(&mut *vcpu, outside, &seat)
            } else {
                Ended::Stopped
            };
            seat.publish(vcpu.counters());
            drop(seat);
            if let Some(end) = explain(ended, index, &*vcpu, &memory) {
                shared.end(end);
            }
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for console in [&self.consoles.serial, &self.consoles.virtio].into_iter().flatten() {
            console.detach();
        }
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // A panic there has been reported, by the panic hook and as the machine's end.
            let _ = thread.join();
        }
    }
}

fn check_vcpus(wanted: u32, hypervisor: &dyn Hypervisor) -> Result<(), HypervisorError> {
    let max = hypervisor.max_vcpus();
    if wanted == 0 || wanted > max {
        return Err(HypervisorError::VcpuCount { wanted, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
