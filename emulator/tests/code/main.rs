//! Code that changes: by its own stores, by another CPU's, by the host's; and code in odd places.
//!
//! The machine runs 32-bit code without paging. Programs end with HLT.

#[path = "../tier/mod.rs"]
mod tier;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Attributes, Cr0, Seg, Segment};
use reprise_emulator::{Answer, Cpu, CpuidTable, Emulator, Entry, Exit, Host, Model, Ram, Reply};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CODE: u64 = 0x1000;
const DATA: u64 = 0x4000;
const SIZE: usize = 0x1_0000;

struct Still;

impl Host for Still {
    fn tsc(&self) -> u64 {
        0
    }

    fn random(&self) -> u64 {
        0
    }
}

struct Machine {
    memory: GuestMemoryMmap<()>,
    ram: Arc<Ram>,
    model: Arc<Model>,
}

impl Machine {
    fn new() -> Machine {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).expect("memory");
        let ram = Arc::new(Ram::new(memory.clone()).expect("page-aligned memory"));
        Machine {
            memory,
            ram,
            model: Arc::new(Model::new()),
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("in memory");
        self.ram.written_by_host(address, bytes.len() as u64);
    }

    fn word(&self, address: u64) -> u32 {
        self.memory.read_obj(GuestAddress(address)).expect("in memory")
    }

    /// A CPU that is about to execute at `ip`.
    fn cpu(&self, ip: u64) -> Emulator {
        let mut cpu = Cpu::reset();
        cpu.cr0.0 |= Cr0::PE;
        cpu.segments[Seg::Cs] = Segment::flat(8, Attributes(0xc09b));
        for seg in [Seg::Es, Seg::Ss, Seg::Ds] {
            cpu.segments[seg] = Segment::flat(16, Attributes(0xc093));
        }
        cpu.rip = ip;
        let mut emulator = Emulator::new(
            cpu,
            self.ram.clone(),
            Arc::new(Still),
            self.model.clone(),
            Arc::new(CpuidTable::default()),
        );
        tier::set(&mut emulator);
        emulator
    }
}

/// Assembles a program for [`CODE`]; `write` gets labels from the assembler itself.
fn program(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(32).expect("32 bits");
    write(&mut assembler).expect("instructions that exist");
    assembler.assemble(CODE).expect("encodable")
}

/// Runs to HLT, answering devices with zeros.
fn run_to_halt(emulator: &mut Emulator) {
    let mut entry = Entry::Resume;
    for _ in 0..1_000_000 {
        entry = match emulator.run(entry).expect("no internal error") {
            Exit::Halt => return,
            exit @ (Exit::Shutdown | Exit::Elsewhere) => panic!("{exit:?} at {:#x}", emulator.cpu().rip),
            Exit::Attention => Entry::Resume,
            Exit::Request(request) => Entry::Answer(Answer {
                id: request.id,
                reply: Reply::Value(0),
            }),
        };
    }
    panic!("the program does not end");
}

#[test]
fn a_store_into_the_next_instruction_of_the_same_block_takes_effect_at_once() {
    let machine = Machine::new();
    // mov byte [next + 1], 7; next: mov al, 0; hlt
    let code = [0xc6, 0x05, 0x08, 0x10, 0x00, 0x00, 0x07, 0xb0, 0x00, 0xf4];
    machine.write(CODE, &code);
    let mut cpu = machine.cpu(CODE);
    run_to_halt(&mut cpu);
    assert_eq!(cpu.cpu().gpr.get(0) as u8, 7);
}

#[test]
fn a_loop_that_rewrites_itself_sees_every_version() {
    let machine = Machine::new();
    let code = program(|a| {
        let mut again = a.create_label();
        a.xor(edx, edx)?;
        a.mov(ecx, 200)?;
        a.set_label(&mut again)?;
        a.mov(eax, 0)?;
        a.add(edx, eax)?;
        // The immediate of the first instruction of the loop becomes the count.
        a.mov(dword_ptr(CODE + 7 + 1), ecx)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.hlt()
    });
    assert_eq!(code[7], 0xb8, "mov eax, imm32 is where the program writes");
    machine.write(CODE, &code);
    let mut cpu = machine.cpu(CODE);
    run_to_halt(&mut cpu);
    // The first round adds 0, the others the count of the round before: 200 down to 2.
    assert_eq!(cpu.cpu().gpr.get(2), (2..=200).sum::<u64>());
}

#[test]
fn what_the_host_writes_is_executed() {
    let machine = Machine::new();
    machine.write(CODE, &[0xb0, 1, 0xf4]);
    let mut cpu = machine.cpu(CODE);
    run_to_halt(&mut cpu);
    machine.write(CODE, &[0xb0, 2, 0xf4]);
    cpu.wake();
    cpu.change(|cpu| cpu.rip = CODE);
    run_to_halt(&mut cpu);
    assert_eq!(cpu.cpu().gpr.get(0) as u8, 2);
}

#[test]
fn data_beside_code_is_written_without_dropping_the_code() {
    let machine = Machine::new();
    let code = program(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(CODE + 0x800), ecx)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.hlt()
    });
    machine.write(CODE, &code);
    let mut cpu = machine.cpu(CODE);
    run_to_halt(&mut cpu);
    assert_eq!(machine.word(CODE + 0x800), 1);
    let blocks = cpu.counters().blocks;
    assert!(blocks < 10, "{blocks} blocks decoded for a program of three");
}

#[test]
fn an_instruction_that_crosses_a_page_is_executed_from_both() {
    let machine = Machine::new();
    // mov eax, 0x44332211, three bytes before a page's end
    machine.write(0x2ffd, &[0xb8, 0x11, 0x22, 0x33, 0x44, 0xf4]);
    let mut cpu = machine.cpu(0x2ffd);
    run_to_halt(&mut cpu);
    assert_eq!(cpu.cpu().gpr.get(0), 0x4433_2211);
    machine.write(0x3000, &[0x66, 0x77]);
    cpu.wake();
    cpu.change(|cpu| cpu.rip = 0x2ffd);
    run_to_halt(&mut cpu);
    assert_eq!(cpu.cpu().gpr.get(0), 0x7766_2211);
}

#[test]
fn code_that_another_cpu_writes_is_executed_after_its_flag_is_seen() {
    // One CPU writes version i of a function, then i into a flag; the other waits for the flag, calls the function, and
    // answers with what it returned. The writer first uses the page as data, so it holds a translation for writing.
    const FUNCTION: u64 = 0x8000;
    const FLAG: u64 = DATA;
    const ECHO: u64 = DATA + 0x1000;
    const ROUNDS: u32 = 2000;
    let machine = Machine::new();
    machine.write(FUNCTION, &[0xb8, 0, 0, 0, 0, 0xc3]);
    let writer = program(|a| {
        let mut round = a.create_label();
        let mut wait = a.create_label();
        let mut bad = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, 1)?;
        a.set_label(&mut round)?;
        a.mov(dword_ptr(FUNCTION + 1), ecx)?;
        a.mov(dword_ptr(FLAG), ecx)?;
        a.set_label(&mut wait)?;
        a.mov(eax, dword_ptr(ECHO))?;
        a.test(eax, eax)?;
        a.je(wait)?;
        a.mov(dword_ptr(ECHO), 0)?;
        a.cmp(eax, ecx)?;
        a.jne(bad)?;
        a.inc(ecx)?;
        a.cmp(ecx, ROUNDS as i32)?;
        a.jne(round)?;
        a.mov(dword_ptr(FLAG), -1)?;
        a.hlt()?;
        a.set_label(&mut bad)?;
        a.mov(ebx, eax)?;
        a.mov(dword_ptr(FLAG), -1)?;
        a.hlt()
    });
    machine.write(CODE, &writer);
    let reader = {
        let mut a = CodeAssembler::new(32).expect("32 bits");
        let mut build = || -> Result<(), IcedError> {
            let mut wait = a.create_label();
            let mut done = a.create_label();
            a.mov(esp, 0xf000)?;
            a.xor(edx, edx)?;
            a.set_label(&mut wait)?;
            a.mov(eax, dword_ptr(FLAG))?;
            a.cmp(eax, -1)?;
            a.je(done)?;
            a.cmp(eax, edx)?;
            a.je(wait)?;
            a.mov(edx, eax)?;
            a.call(FUNCTION)?;
            a.mov(dword_ptr(ECHO), eax)?;
            a.jmp(wait)?;
            a.set_label(&mut done)?;
            a.hlt()
        };
        build().expect("instructions that exist");
        a.assemble(0x2000).expect("encodable")
    };
    machine.write(0x2000, &reader);
    let (mut first, mut second) = (machine.cpu(CODE), machine.cpu(0x2000));
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            run_to_halt(&mut second);
            ended.store(true, Ordering::SeqCst);
        });
        run_to_halt(&mut first);
    });
    assert!(ended.load(Ordering::SeqCst));
    let writer = first.cpu();
    assert_eq!(
        writer.gpr.get(3),
        0,
        "round {} returned an older version",
        writer.gpr.get(1)
    );
    assert_eq!(writer.gpr.get(1), u64::from(ROUNDS));
}
