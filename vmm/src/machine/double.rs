//! A hypervisor whose vCPUs follow a script, for tests of what stands around them.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use reprise_emulator::Cpu;
use reprise_hypervisor::{
    Access, CpuModel, GuestMemory, Hypervisor, HypervisorError, HypervisorKind, InterruptLine, IoRequest, Kick,
    RequestId, SoftHypervisor, Space, Vcpu, VcpuError, VcpuState, Vm, VmEntry, VmExit, VmSettings, VmState,
};
use vm_memory::GuestAddress;

/// What a scripted vCPU does next. At the end of its script it sleeps until it is kicked, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Reads a byte at a port.
    Read(u16),
    /// Writes a byte to a port.
    Write(u16, u8),
    /// Reads bytes at a port into guest memory: how many, and to where.
    ReadTo(u16, u64, u32),
    /// Writes bytes of guest memory to a port.
    WriteFrom(u16, u64, u32),
    /// A triple fault.
    Shutdown,
    /// Fails.
    Fail,
    /// A bug of ours.
    Panic,
}

/// A vCPU that follows its script and writes down how it was entered.
pub struct Scripted {
    script: VecDeque<Act>,
    record: Arc<Record>,
    next_id: u64,
    waiting: Option<IoRequest>,
    state: VcpuState,
}

/// What a scripted vCPU has seen.
#[derive(Default)]
pub struct Record {
    state: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    entries: Vec<VmEntry>,
    kicked: bool,
    asleep: bool,
    cancelled: bool,
    stale: u64,
    call: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Scripted {
    pub fn new(script: &[Act]) -> (Self, Arc<Record>) {
        let record = Arc::new(Record::default());
        let vcpu = Self {
            script: script.iter().copied().collect(),
            record: Arc::clone(&record),
            next_id: 100,
            waiting: None,
            state: real(0).1,
        };
        (vcpu, record)
    }

    /// Has the vCPU begin with waiting for the answer to `request`.
    pub fn restore_waiting(&mut self, request: IoRequest) {
        self.waiting = Some(request);
    }

    fn io(&mut self, port: u16, access: Access) -> VmExit {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let request = IoRequest {
            id,
            space: Space::Port,
            address: port.into(),
            size: 1,
            access,
        };
        self.waiting = Some(request);
        VmExit::Io(request)
    }
}

impl Record {
    /// How the vCPU was entered so far.
    pub fn entries(&self) -> Vec<VmEntry> {
        self.state.lock().unwrap().entries.clone()
    }

    /// The values of the answers among them.
    pub fn answers(&self) -> Vec<u64> {
        let entries = self.entries();
        entries
            .iter()
            .filter_map(|entry| {
                if let VmEntry::Answer(answer) = entry {
                    Some(answer.value)
                } else {
                    None
                }
            })
            .collect()
    }

    /// Waits until the vCPU sleeps.
    pub fn wait_asleep(&self) {
        let awake = |seen: &mut Seen| !seen.asleep;
        drop(self.changed.wait_while(self.state.lock().unwrap(), awake).unwrap());
    }

    /// Waits until the vCPU has been entered `count` times.
    pub fn wait_entries(&self, count: usize) {
        let fewer = |seen: &mut Seen| seen.entries.len() < count;
        drop(self.changed.wait_while(self.state.lock().unwrap(), fewer).unwrap());
    }

    /// Ends the vCPU's wait for a device, as INIT does.
    pub fn cancel(&self) {
        let mut seen = self.state.lock().unwrap();
        seen.cancelled = true;
        let call = seen.call.clone();
        drop(seen);
        call.unwrap()();
    }

    /// Calls the vCPU's owner for nothing.
    pub fn call(&self) {
        let call = self.state.lock().unwrap().call.clone();
        call.unwrap()();
    }

    fn sleep(&self) {
        let mut seen = self.state.lock().unwrap();
        seen.asleep = true;
        self.changed.notify_all();
        seen = self.changed.wait_while(seen, |seen| !seen.kicked).unwrap();
        seen.kicked = false;
        seen.asleep = false;
    }
}

impl Kick for Record {
    fn kick(&self) {
        self.state.lock().unwrap().kicked = true;
        self.changed.notify_all();
    }
}

impl Vcpu for Scripted {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, VcpuError> {
        let mut seen = self.record.state.lock().unwrap();
        let cancelled = std::mem::take(&mut seen.cancelled);
        match (entry, self.waiting.take().map(|request| request.id)) {
            (VmEntry::Resume, Some(waiting)) if !cancelled => return Err(VcpuError::AnswerOwed { waiting }),
            (VmEntry::Answer(_), _) if cancelled => seen.stale += 1,
            (VmEntry::Answer(answer), waiting) => assert_eq!(Some(answer.id), waiting, "answers name their question"),
            (VmEntry::Resume, _) => (),
        }
        seen.entries.push(entry);
        self.record.changed.notify_all();
        if std::mem::take(&mut seen.kicked) {
            return Ok(VmExit::Interrupted);
        }
        drop(seen);
        match self.script.pop_front() {
            Some(Act::Read(port)) => Ok(self.io(port, Access::Read)),
            Some(Act::Write(port, value)) => Ok(self.io(port, Access::Write(value.into()))),
            Some(Act::ReadTo(port, guest, count)) => Ok(self.io(port, Access::ReadTo { guest, count })),
            Some(Act::WriteFrom(port, guest, count)) => Ok(self.io(port, Access::WriteFrom { guest, count })),
            Some(Act::Shutdown) => Ok(VmExit::Shutdown),
            Some(Act::Fail) => Err(VcpuError::AnswerOwed { waiting: RequestId(7) }),
            Some(Act::Panic) => panic!("a scripted panic"),
            None => {
                self.record.sleep();
                Ok(VmExit::Interrupted)
            }
        }
    }

    fn cpu(&self) -> Result<Box<Cpu>, VcpuError> {
        Ok(self.state.cpu.clone())
    }

    fn set_cpu(&mut self, cpu: &Cpu) -> Result<(), VcpuError> {
        *self.state.cpu = cpu.clone();
        Ok(())
    }

    fn state(&self) -> Result<VcpuState, VcpuError> {
        Ok(self.state.clone())
    }

    fn restore(&mut self, state: VcpuState) -> Result<(), VcpuError> {
        self.state = state;
        Ok(())
    }

    fn waiting(&self) -> Option<IoRequest> {
        self.waiting.filter(|_| !self.record.state.lock().unwrap().cancelled)
    }

    fn on_call(&self, call: Arc<dyn Fn() + Send + Sync>) {
        self.record.state.lock().unwrap().call = Some(call);
    }

    fn kick(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.record) as Arc<dyn Kick>
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let stale = self.record.state.lock().unwrap().stale;
        vec![
            ("entries", self.record.entries().len() as u64),
            ("stale_answers", stale),
        ]
    }
}

/// A hypervisor whose vCPUs follow the scripts in turn.
pub struct Doubles {
    scripts: Vec<Vec<Act>>,
    pub vm: Arc<DoubleVm>,
}

/// Its machine.
#[derive(Default)]
pub struct DoubleVm {
    vcpus: Mutex<VecDeque<Scripted>>,
    pub records: Mutex<Vec<Arc<Record>>>,
    pub paused: Mutex<Vec<bool>>,
    /// What was restored, if anything.
    state: Mutex<Option<VmState>>,
    /// What was written to guest memory: where, and how many bytes.
    pub written: Mutex<Vec<(u64, u64)>>,
}

impl Doubles {
    pub fn new(scripts: &[&[Act]]) -> Self {
        Self {
            scripts: scripts.iter().map(|script| script.to_vec()).collect(),
            vm: Arc::default(),
        }
    }

    pub fn record(&self, vcpu: usize) -> Arc<Record> {
        Arc::clone(&self.vm.records.lock().unwrap()[vcpu])
    }
}

impl Hypervisor for Doubles {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::Soft
    }

    fn max_vcpus(&self) -> u32 {
        u32::try_from(self.scripts.len()).unwrap()
    }

    fn create_vm(&self, _settings: VmSettings) -> Result<Arc<dyn Vm>, HypervisorError> {
        let (vcpus, records): (VecDeque<_>, _) = self.scripts.iter().map(|script| Scripted::new(script)).unzip();
        *self.vm.vcpus.lock().unwrap() = vcpus;
        *self.vm.records.lock().unwrap() = records;
        Ok(Arc::clone(&self.vm) as Arc<dyn Vm>)
    }
}

impl Vm for DoubleVm {
    fn create_vcpu(&self, _index: u32) -> Result<Box<dyn Vcpu>, HypervisorError> {
        Ok(Box::new(self.vcpus.lock().unwrap().pop_front().unwrap()))
    }

    fn interrupt_line(&self, _gsi: u32) -> Result<Arc<dyn InterruptLine>, HypervisorError> {
        Ok(Arc::new(NoLine))
    }

    fn signal_msi(&self, _address: u64, _data: u32) {}

    fn memory_written(&self, address: u64, length: u64) {
        self.written.lock().unwrap().push((address, length));
    }

    fn set_paused(&self, paused: bool) {
        self.paused.lock().unwrap().push(paused);
    }

    fn state(&self) -> Result<VmState, HypervisorError> {
        let restored = self.state.lock().unwrap().clone();
        Ok(restored.unwrap_or_else(|| real(self.records.lock().unwrap().len()).0))
    }

    fn restore(&self, state: &VmState) -> Result<(), HypervisorError> {
        *self.state.lock().unwrap() = Some(state.clone());
        Ok(())
    }
}

/// The states of a real machine with `vcpus` vCPUs (at least one) before it runs, and of its first vCPU.
fn real(vcpus: usize) -> (VmState, VcpuState) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let vcpus = u32::try_from(vcpus.max(1)).unwrap();
    let settings = VmSettings {
        vcpus,
        memory,
        hyperv: false,
        model: CpuModel::Host,
    };
    let vm = SoftHypervisor.create_vm(settings).unwrap();
    (vm.state().unwrap(), vm.create_vcpu(0).unwrap().state().unwrap())
}

struct NoLine;

impl InterruptLine for NoLine {
    fn set(&self, _level: bool) {}
}
