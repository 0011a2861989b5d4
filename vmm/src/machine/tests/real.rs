//! Machines whose CPUs are real, and that have a device whose answers are in a test's hands.

use std::sync::Mutex;
use std::sync::mpsc::Sender;

use iced_x86::code_asm::*;
use reprise_devices::{Bus, Completion, Device, Response, Space, Ticket};
use reprise_hypervisor::SoftHypervisor;

use super::*;
use crate::boot::test_images::Segment;

/// Where the code lies; it is entered through PVH, in flat 32-bit protected mode.
const CODE: u64 = 0x20_0000;

/// An access: where, and what was written.
type Seen = (u64, Option<u64>);

/// A device that tells what it is asked. Its memory reads as [`content`](Probe::content), its first port counts the reads.
struct Probe {
    seen: Mutex<Vec<Seen>>,
    asked: Mutex<Sender<(Seen, Completion)>>,
    late: fn(Seen, usize) -> bool,
}

/// Offsets of the ports: its memory has those below.
const PORTS: u64 = 0x1000;
const PORT: i32 = 0x500;
const MEMORY: i32 = 0xd000_0000_u32 as i32;

impl Probe {
    /// A device that is late with the accesses that `late` names, each with its number. The questions come with it.
    fn new(late: fn(Seen, usize) -> bool) -> (Arc<Self>, Receiver<(Seen, Completion)>) {
        let (asked, questions) = channel();
        let probe = Self {
            seen: Mutex::default(),
            asked: Mutex::new(asked),
            late,
        };
        (Arc::new(probe), questions)
    }

    fn attach(self: &Arc<Self>, bus: &Bus) {
        bus.insert(Space::Memory, u64::from(MEMORY as u32), PORTS, self.clone())
            .unwrap();
        bus.insert_part(Space::Port, PORT as u64, 0x10, self.clone(), PORTS)
            .unwrap();
    }

    fn content(offset: u64) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| (offset + i as u64).wrapping_mul(37) as u8))
    }

    fn answer(seen: Seen, number: usize) -> u64 {
        match seen {
            (_, Some(_)) => 0,
            (PORTS, None) => number as u64,
            (offset, None) => Self::content(offset),
        }
    }

    fn see(&self, seen: Seen) -> Response {
        let mut all = self.seen.lock().unwrap();
        all.push(seen);
        let number = all.len() - 1;
        if (self.late)(seen, number) {
            let (ticket, completion) = Ticket::pair();
            self.asked.lock().unwrap().send((seen, completion)).unwrap();
            return Response::Later(ticket);
        }
        Response::Done(Self::answer(seen, number))
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Device for Probe {
    fn name(&self) -> &str {
        "probe"
    }

    fn read(&self, offset: u64, _size: u8) -> Response {
        self.see((offset, None))
    }

    fn write(&self, offset: u64, _size: u8, value: u64) -> Response {
        self.see((offset, Some(value)))
    }
}

/// A machine that runs this code once it is started.
fn real(vcpus: u32, probe: &Arc<Probe>, code: Vec<u8>) -> (Machine, Receiver<MachineEnd>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vmlinux");
    let segment = Segment {
        address: CODE,
        memory_size: code.len() as u64,
        content: code,
    };
    let kernel = Elf {
        segments: vec![segment],
        pvh: Some(CODE as u32),
        ..Elf::default()
    };
    std::fs::write(&path, kernel.bytes()).unwrap();
    let options = MachineOptions {
        debug_exit: true,
        ..MachineOptions::default()
    };
    let (told, ends) = channel();
    let on_end = Box::new(move |end| told.send(end).unwrap());
    let machine = Machine::new(&config(path, vcpus), &SoftHypervisor, options, on_end).unwrap();
    probe.attach(&machine.board.bus);
    (machine, ends)
}

pub(super) fn assemble(bits: u32, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(CODE).unwrap()
}

/// REP MOVS and INS from the device to RAM, and with OUTS and MOVS from there to the device, over the ends of pages.
fn moves() -> Vec<u8> {
    const FROM_MEMORY: i32 = 0x30_0ff0;
    const FROM_PORT: i32 = 0x30_2ff8;
    assemble(32, |a| {
        a.cld()?;
        a.mov(esi, MEMORY)?;
        a.mov(edi, FROM_MEMORY)?;
        a.mov(ecx, 100)?;
        a.rep().movsb()?;
        a.mov(dx, PORT)?;
        a.mov(edi, FROM_PORT)?;
        a.mov(ecx, 50)?;
        a.rep().insb()?;
        a.mov(dx, PORT + 1)?;
        a.mov(esi, FROM_MEMORY)?;
        a.mov(ecx, 100)?;
        a.rep().outsb()?;
        a.mov(esi, FROM_PORT)?;
        a.mov(edi, MEMORY + 0x800)?;
        a.mov(ecx, 50)?;
        a.rep().movsb()?;
        // Wider elements, the last of them of a page with one foot in the next.
        a.mov(esi, MEMORY + 4)?;
        a.mov(edi, FROM_PORT + 6)?;
        a.mov(ecx, 10)?;
        a.rep().movsd()?;
        a.mov(dx, PORT + 4)?;
        a.mov(esi, FROM_PORT + 6)?;
        a.mov(ecx, 10)?;
        a.rep().outsd()?;
        a.mov(al, 1)?;
        a.out(0xf4, al)?;
        a.hlt()
    })
}

fn moved() -> Vec<Seen> {
    let byte = |i: u64| Probe::content(i) & 0xff;
    let dword = |i: u64| Probe::content(4 + 4 * i) & 0xffff_ffff;
    let reads = (0..100).map(|i| (i, None));
    let ins = (0..50).map(|_| (PORTS, None));
    let outs = (0..100).map(|i| (PORTS + 1, Some(byte(i))));
    // The port answers with the number of the access.
    let writes = (0..50).map(|i| (0x800 + i, Some((100 + i) & 0xff)));
    let wide = (0..10).map(|i| (4 + 4 * i, None));
    let wide_outs = (0..10).map(|i| (PORTS + 4, Some(dword(i))));
    reads
        .chain(ins)
        .chain(outs)
        .chain(writes)
        .chain(wide)
        .chain(wide_outs)
        .collect()
}

#[test]
fn rule_8_repeated_string_moves_reach_a_device_in_order_and_once_each_however_late_it_is() {
    let patterns: [fn(Seen, usize) -> bool; 5] = [
        |_, _| false,
        |_, _| true,
        |_, number| number % 3 == 2,
        |_, number| number % 17 == 16,
        |seen, _| seen.1.is_some(),
    ];
    for (pattern, late) in patterns.into_iter().enumerate() {
        let (probe, questions) = Probe::new(late);
        let (machine, ends) = real(1, &probe, moves());
        machine.start();
        // Answers from another thread, as soon as there is a question; held now and then while it is asked.
        let end = loop {
            if let Ok((seen, completion)) = questions.recv_timeout(Duration::from_millis(1)) {
                let number = probe.seen().len() - 1;
                if number.is_multiple_of(29) {
                    machine.pause().unwrap();
                    completion.complete(Probe::answer(seen, number));
                    machine.resume();
                } else {
                    completion.complete(Probe::answer(seen, number));
                }
            }
            if let Ok(end) = ends.try_recv() {
                break end;
            }
        };
        assert_eq!(end, MachineEnd::DebugExit(1));
        let expected = moved();
        assert_eq!(probe.seen(), expected, "pattern {pattern}");
        let late = expected.iter().zip(0..).filter(|(seen, number)| late(**seen, *number));
        let counters = machine.counters();
        assert_eq!(counters["vcpu0"]["parked"], late.count() as u64, "pattern {pattern}");
        machine.stop();
    }
}

#[test]
fn rule_20_a_vcpu_restarted_by_init_and_sipi_takes_no_answer_from_before() {
    const STARTS: i32 = 0x9000;
    // Asks at port 2, and says at port 3 what the answer was.
    let stub = assemble(16, |a| {
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.lock().inc(word_ptr(STARTS))?;
        a.mov(dx, PORT + 2)?;
        a.in_(al, dx)?;
        a.mov(dx, PORT + 3)?;
        a.out(dx, al)?;
        a.cli()?;
        a.hlt()
    });
    // Starts the other vCPU, and again when port 4 answers.
    let code = assemble(32, |a| {
        let [mut begin, mut again] = [(); 2].map(|()| a.create_label());
        a.mov(esp, 0x7000)?;
        // Pushes where the stub is.
        a.call(begin)?;
        a.db(&stub)?;
        a.set_label(&mut begin)?;
        a.pop(esi)?;
        a.cld()?;
        a.mov(edi, 0x8000)?;
        a.mov(ecx, i32::try_from(stub.len()).unwrap())?;
        a.rep().movsb()?;
        a.mov(edi, 0xfee0_0000_u32)?;
        a.mov(dword_ptr(edi + 0xf0), 0x1ff)?;
        a.set_label(&mut again)?;
        // INIT and start-up IPI to the local APIC 1.
        a.mov(dword_ptr(edi + 0x310), 1 << 24)?;
        a.mov(dword_ptr(edi + 0x300), 0x4500)?;
        a.mov(dword_ptr(edi + 0x300), 0x4608)?;
        a.mov(dx, PORT + 4)?;
        a.in_(al, dx)?;
        a.jmp(again)
    });
    let (probe, questions) = Probe::new(|seen, _| seen.1.is_none());
    let (machine, _ends) = real(2, &probe, code);
    machine.start();
    // The questions of both vCPUs, in whichever order they come.
    let mut waiting = Vec::new();
    let mut question = |of: u64| loop {
        if let Some(found) = waiting
            .iter()
            .position(|((offset, _), _): &(Seen, Completion)| *offset == of)
        {
            return waiting.swap_remove(found).1;
        }
        waiting.push(questions.recv_timeout(LONG).unwrap());
    };
    let first = question(PORTS + 2);
    question(PORTS + 4).complete(0);
    let second = question(PORTS + 2);
    question(PORTS + 4).complete(0);
    let third = question(PORTS + 2);
    let figures = || {
        let counters = machine.counters();
        ["cancellations", "stale_answers"].map(|name| counters["vcpu1"][name])
    };
    assert_eq!(figures(), [2, 0], "no answer has come");
    second.complete(0x22);
    assert_eq!(figures(), [2, 1]);
    third.complete(0x33);
    first.complete(0x11);
    let said = || {
        probe
            .seen()
            .into_iter()
            .filter(|(offset, _)| *offset == PORTS + 3)
            .collect::<Vec<_>>()
    };
    while said().is_empty() {
        thread::yield_now();
    }
    machine.pause().unwrap();
    assert_eq!(said(), [(PORTS + 3, Some(0x33))]);
    assert_eq!(figures(), [2, 2]);
    machine.stop();
}
