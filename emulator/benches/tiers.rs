//! Instructions per second, interpreted and translated.
//!
//! - `mixed`: a loop of loads, stores, address arithmetic, shifts, branches, a call, a push and a pop, in 4 KiB of data.
//! - `multiply`: multi-precision multiplication by one word, what a kernel spends its boot with when it checks signatures.
//! - `chase`: dependent loads through 256 KiB, which miss the software TLB now and then.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Attributes, Cr0, Cr4, Efer, Seg, Segment};
use reprise_emulator::translate::Translation;
use reprise_emulator::{Cpu, CpuidTable, Emulator, Entry, Host, Model, Ram};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
const STACK: u64 = 0x2_0000;
const INSTRUCTIONS: u64 = 1_000_000;

struct Still;

impl Host for Still {
    fn tsc(&self) -> u64 {
        0
    }

    fn random(&self) -> u64 {
        0
    }
}

/// A CPU in 64-bit mode, its first two megabytes mapped where they are, at the start of an endless program.
fn machine(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Emulator {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).unwrap();
    put(0x1000, 0x2023);
    put(0x2000, 0x3023);
    put(0x3000, 0x4023);
    for page in 0..512 {
        put(0x4000 + 8 * page, page << 12 | 0x63);
    }
    // A cycle through 256 KiB, a step of 67 lines each.
    for line in 0..4096 {
        put(DATA + 64 * line, DATA + 64 * ((line + 67) % 4096));
    }
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    let code = assembler.assemble(CODE).unwrap();
    memory.write_slice(&code, GuestAddress(CODE)).unwrap();
    let mut cpu = Cpu::reset();
    cpu.cr0 = Cr0(Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE);
    cpu.cr3 = 0x1000;
    cpu.cr4 = Cr4(Cr4::PAE);
    cpu.efer = Efer(Efer::LME | Efer::LMA);
    cpu.segments[Seg::Cs] = Segment::flat(8, Attributes(0xa09b));
    for seg in [Seg::Es, Seg::Ss, Seg::Ds] {
        cpu.segments[seg] = Segment::flat(16, Attributes(0xc093));
    }
    cpu.rip = CODE;
    cpu.gpr.set(4, STACK);
    cpu.refresh();
    let ram = Arc::new(Ram::new(memory).unwrap());
    Emulator::new(
        cpu,
        ram,
        Arc::new(Still),
        Arc::new(Model::new()),
        Arc::new(CpuidTable::default()),
    )
}

fn mixed(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut smaller, mut function) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rsi, DATA)?;
    a.set_label(&mut again)?;
    a.mov(eax, dword_ptr(rsi + rbx * 4))?;
    a.add(eax, ecx)?;
    a.xor(edx, eax)?;
    a.mov(dword_ptr(rsi + rbx * 4), edx)?;
    a.lea(ebx, ptr(rbx + 1))?;
    a.and(ebx, 0x3ff)?;
    a.cmp(eax, edx)?;
    a.jb(smaller)?;
    a.inc(edi)?;
    a.set_label(&mut smaller)?;
    a.shr(eax, 3)?;
    a.call(function)?;
    a.push(rax)?;
    a.pop(rbp)?;
    a.dec(ecx)?;
    a.jmp(again)?;
    a.set_label(&mut function)?;
    a.add(eax, ebp)?;
    a.ret()
}

fn multiply(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut row, mut again) = (a.create_label(), a.create_label());
    a.mov(r13, 0x1234_5678_9abc_def1u64)?;
    a.set_label(&mut row)?;
    a.mov(rsi, DATA)?;
    a.mov(rdi, DATA + 0x800)?;
    a.xor(r8d, r8d)?;
    a.mov(r14d, 64)?;
    a.set_label(&mut again)?;
    a.mov(rax, qword_ptr(rsi))?;
    a.mul(r13)?;
    a.add(rax, r8)?;
    a.adc(rdx, 0)?;
    a.add(qword_ptr(rdi), rax)?;
    a.adc(rdx, 0)?;
    a.mov(r8, rdx)?;
    a.lea(rsi, ptr(rsi + 8))?;
    a.lea(rdi, ptr(rdi + 8))?;
    a.dec(r14)?;
    a.jnz(again)?;
    a.jmp(row)
}

fn chase(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(rsi, DATA)?;
    a.set_label(&mut again)?;
    a.mov(rsi, qword_ptr(rsi))?;
    a.inc(rcx)?;
    a.test(rsi, rsi)?;
    a.jnz(again)?;
    a.hlt()
}

fn tiers(c: &mut Criterion) {
    let mut group = c.benchmark_group("tiers");
    group.throughput(Throughput::Elements(INSTRUCTIONS));
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let programs: [(&str, Write); 3] = [("mixed", mixed), ("multiply", multiply), ("chase", chase)];
    for (name, write) in programs {
        for (tier, translation) in [("interpreted", None), ("translated", Some(Translation::default()))] {
            let mut emulator = machine(write);
            emulator.set_translation(translation).unwrap();
            group.bench_function(format!("{name}/{tier}"), |b| {
                b.iter(|| {
                    let exit = emulator.run_at_most(Entry::Resume, INSTRUCTIONS).unwrap();
                    black_box(exit)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, tiers);
criterion_main!(benches);
