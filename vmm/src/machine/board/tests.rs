use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};

use proptest::prelude::*;
use reprise_devices::acpi::ports;
use reprise_devices::{MachineEvent, Response, Space};
use reprise_hypervisor::{CpuModel, GuestMemory, Hypervisor, SoftHypervisor, VmSettings};
use vm_memory::GuestAddress;

use super::*;
use crate::config::MemoryConfig;

#[path = "../../../../hypervisor/src/testing.rs"]
mod testing;
use testing::{spoilt, through_json};

const COM1: u64 = serial::COM1;
/// The debug-exit port is not among them: it ends the machine.
const PORTS: [u64; 12] = [
    0x60,
    0x64,
    0x80,
    COM1,
    COM1 + 1,
    COM1 + 2,
    COM1 + 3,
    COM1 + 7,
    ports::PM1A_EVT,
    ports::PM1A_EVT + 2,
    ports::PM1A_CNT,
    ports::PM_TMR,
];

/// A paused board with everything on it, and a console whose other end is `terminal`.
struct World {
    vm: Arc<dyn Vm>,
    board: Board,
    events: Receiver<MachineEvent>,
    _console: Arc<Console>,
    terminal: UnixStream,
}

impl World {
    fn new() -> Self {
        Self::late(&[])
    }

    fn late(delays: &[DelayConfig]) -> Self {
        let (ours, terminal) = UnixStream::pair().unwrap();
        terminal.set_nonblocking(true).unwrap();
        let console = Console::stream(ours).unwrap();
        let (vm, board, events) = build(Some(&console), delays);
        Self {
            vm,
            board,
            events,
            _console: console,
            terminal,
        }
    }

    fn read(&self, port: u64, size: u8) -> u64 {
        self.board.bus.read(Space::Port, port, size).wait()
    }

    fn write(&self, port: u64, size: u8, value: u64) {
        let _nothing = self.board.bus.write(Space::Port, port, size, value).wait();
    }

    /// Does something that a guest may do: what it reads, and what follows.
    fn act(&self, (place, size, written): Step) -> (u64, Vec<MachineEvent>) {
        let read = match written {
            Some(value) if place == 0 => {
                // The clock's time registers are the host's; the rest of its memory is not.
                self.write(0x70, 1, 0x40 | value & 0x3f);
                self.write(0x71, 1, value >> 8 & 0xff);
                self.read(0x71, 1)
            }
            Some(value) => {
                self.write(PORTS[place % PORTS.len()], size, value);
                0
            }
            None => self.read(PORTS[place % PORTS.len()], size),
        };
        (read, self.events.try_iter().collect())
    }

    /// What the terminal has been sent.
    fn printed(&mut self) -> Vec<u8> {
        let port = self.board.serial.as_ref().unwrap();
        assert!(port.output().drain(Duration::MAX));
        let mut bytes = vec![0; 1 << 16];
        let count = io::Read::read(&mut self.terminal, &mut bytes).unwrap_or(0);
        bytes.truncate(count);
        bytes
    }
}

fn build(console: Option<&Arc<Console>>, delays: &[DelayConfig]) -> (Arc<dyn Vm>, Board, Receiver<MachineEvent>) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let vm = SoftHypervisor
        .create_vm(VmSettings {
            vcpus: 1,
            memory: memory.clone(),
            hyperv: false,
            model: CpuModel::Host,
        })
        .unwrap();
    let (tell, events) = mpsc::channel();
    let config = VmConfig {
        memory: MemoryConfig::of(64 << 20),
        delays: delays.to_vec(),
        ..VmConfig::default()
    };
    let parts = Parts {
        config: &config,
        memory: &memory,
        console: console.map(|console| &**console),
        virtio_console: None,
        debug_exit: true,
        events: Arc::new(move |event: MachineEvent| tell.send(event).unwrap_or_default()),
    };
    let board = Board::new(&vm, &parts).unwrap();
    vm.set_paused(true);
    board.set_paused(true);
    (vm, board, events)
}

/// A place, a width, and what is written, if anything.
type Step = (usize, u8, Option<u64>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let width = prop::sample::select(vec![1_u8, 1, 2, 4]);
    let value = prop_oneof![any::<u64>(), (0_u32..16).prop_map(|bit| 1 << bit)];
    prop::collection::vec((0..PORTS.len(), width, prop::option::of(value)), 0..60)
}

proptest! {
    #[test]
    fn a_restored_board_goes_on_as_the_saved_one(before in steps(), after in steps()) {
        let (mut own, mut other) = (World::new(), World::new());
        for step in before { own.act(step); }
        // What is to be printed is printed at any time, and not state any more then.
        drop(own.printed());
        let saved = own.board.state().unwrap();
        other.board.restore(&through_json(&saved)).unwrap();
        prop_assert_eq!(other.board.state().unwrap(), saved);
        for step in after {
            prop_assert_eq!(own.act(step), other.act(step));
        }
        prop_assert_eq!(own.printed(), other.printed());
        prop_assert_eq!(own.board.state().unwrap(), other.board.state().unwrap());
    }

    #[test]
    fn a_spoilt_board_is_refused_or_does_no_harm(
        before in steps(), after in steps(), changes in prop::collection::vec(any::<(usize, u64)>(), 1..6),
    ) {
        let (own, other) = (World::new(), World::new());
        for step in before { own.act(step); }
        if let Some(state) = spoilt(&own.board.state().unwrap(), &changes) {
            match other.board.restore(&state) {
                Ok(()) => {
                    other.vm.set_paused(false);
                    other.board.set_paused(false);
                    for step in after { other.act(step); }
                    prop_assert!(World::new().board.restore(&other.board.state().unwrap()).is_ok());
                }
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}

#[test]
fn what_was_printed_and_not_read_is_printed_by_the_next_board_and_what_was_typed_is_read() {
    let mut own = World::new();
    own.board.set_paused(false);
    for byte in *b"printed" {
        own.write(COM1, 1, byte.into());
    }
    assert_eq!(own.board.serial.as_ref().unwrap().enqueue(b"typed"), 5);
    own.board.set_paused(true);
    let mut saved = own.board.state().unwrap();
    let port = saved.serial.as_mut().unwrap();
    assert_eq!(port.output, OutputState::default(), "the console has taken it");
    assert_eq!(own.printed(), b"printed");
    port.output.queued = b"left".to_vec();
    let mut other = World::new();
    other.board.restore(&through_json(&saved)).unwrap();
    let serial = other.board.serial.as_ref().unwrap();
    assert_eq!(serial.enqueue(b"while it is paused"), 0);
    other.board.set_paused(false);
    assert_eq!(serial.enqueue(b"!"), 1);
    let typed: Vec<_> = (0..6).map(|_| other.read(COM1, 1) as u8).collect();
    assert_eq!(typed, b"typed!");
    assert_eq!(other.printed(), b"left");
}

#[test]
fn the_sci_of_a_pressed_button_is_up_in_the_next_machine_and_falls_when_it_is_served() {
    let sci = |world: &World| world.vm.state().unwrap().io_apic.pins >> SCI_GSI & 1 != 0;
    let own = World::new();
    own.write(ports::PM1A_EVT + 2, 2, 1 << 8);
    own.board.acpi.press_power_button();
    assert!(sci(&own));
    let other = World::new();
    other.vm.restore(&through_json(&own.vm.state().unwrap())).unwrap();
    other.board.restore(&through_json(&own.board.state().unwrap())).unwrap();
    other.board.set_paused(false);
    other.vm.set_paused(false);
    assert!(sci(&other));
    other.write(ports::PM1A_EVT, 2, 1 << 8);
    assert!(!sci(&other));
}

#[test]
fn a_paused_boards_timer_stands_and_goes_on_from_there_in_the_next_one() {
    let own = World::new();
    let stood = own.read(ports::PM_TMR, 4);
    let saved = own.board.state().unwrap();
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(own.read(ports::PM_TMR, 4), stood);
    let other = World::new();
    other.board.restore(&saved).unwrap();
    assert_eq!(other.read(ports::PM_TMR, 4), stood);
    other.board.set_paused(false);
    while other.read(ports::PM_TMR, 4) == stood {}
}

#[test]
fn an_answer_that_is_kept_back_is_saved_and_given_in_the_next_machine_without_asking_again() {
    let late = [DelayConfig {
        device: "i8042".to_owned(),
        us: "1".parse().unwrap(),
        after: 2,
        seed: 0,
    }];
    let own = World::late(&late);
    own.write(0x64, 1, 0xd2);
    own.write(0x60, 1, 0x5a);
    let Response::Later(ticket) = own.board.bus.read(Space::Port, 0x60, 1) else {
        panic!("it is delayed")
    };
    let saved = through_json(&own.board.state().unwrap());
    assert_eq!(ticket.try_take(), None, "the machine is paused");
    let other = World::late(&late);
    other.board.restore(&saved).unwrap();
    let answer = other.board.bus.resume(Space::Port, 0x60, 1, None);
    other.board.set_paused(false);
    assert_eq!(answer.wait(), 0x5a);
}

#[test]
fn a_board_of_another_shape_is_refused_by_what_differs() {
    let own = World::new();
    let saved = own.board.state().unwrap();
    let (_vm, bare, _events) = build(None, &[]);
    assert_eq!(bare.restore(&saved), Err(BoardStateError::Ports { saved: 1, own: 0 }));
    assert_eq!(
        own.board.restore(&bare.state().unwrap()),
        Err(BoardStateError::Ports { saved: 0, own: 1 })
    );
    let mut many = saved.clone();
    many.serial.as_mut().unwrap().port.input = vec![0; 65];
    let error = own.board.restore(&many).unwrap_err();
    assert!(matches!(error, BoardStateError::Serial { .. }), "{error}");
    let mut late = saved.clone();
    late.delays = Some(DelaysState::default());
    assert!(matches!(own.board.restore(&late), Err(BoardStateError::Delays { .. })));
    assert_eq!(own.board.state().unwrap(), saved, "a refusal changes nothing");
}
