//! A random guest: flat 32-bit code, the same whatever interrupts it and whenever.
//!
//! Each vCPU has a region of its own: code, interrupt descriptor table, counters, a log of what it has read. Handlers
//! count, and the code waits for a count; whatever was on the stack, and moments, are not part of what is compared.

use std::ops::Range;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::gpr;
use vm_memory::{Bytes, GuestAddress};

use super::super::world::World;
use super::Dice;
use crate::{GuestMemory, Vcpu};

type Result = std::result::Result<(), IcedError>;

/// Ports of a vCPU's device: plain registers, and four with a meaning.
pub(super) mod ports {
    pub const REGISTERS: u64 = 0x500;
    /// Asserts the level-triggered line, until [`STATUS`] is read.
    pub const RAISE: u64 = 0x600;
    /// Deasserts the line.
    pub const STATUS: u64 = 0x601;
    /// Pulses the edge-triggered line.
    pub const PULSE: u64 = 0x602;
    /// The guest is done.
    pub const DONE: u64 = 0x6ff;
}

/// A vCPU's level-triggered line, and its edge-triggered one. The PICs, which a processor sets up amid other things, do not
/// have them.
pub(super) fn lines(index: u32) -> [u32; 2] {
    [16 + index, 20 + index]
}

mod vector {
    pub const PIC: u8 = 0x30;
    pub const TIMER: u8 = 0x41;
    pub const PIT: u8 = 0x43;
    pub const IPI: u8 = 0x50;
    /// And the next for the second processor: the end of a level-triggered interrupt is told for a vector, whosever it is.
    pub const LEVEL: u8 = 0x60;
    pub const EDGE: u8 = 0x70;
    pub const COUNTED: [u8; 4] = [TIMER, PIT, IPI, EDGE];
}

/// Of the local APIC's registers.
const EOI: u32 = 0xfee0_00b0;
const SVR: u32 = 0xfee0_00f0;
const ICR: [u32; 2] = [0xfee0_0300, 0xfee0_0310];
const LVT_TIMER: u32 = 0xfee0_0320;
const INITIAL_COUNT: u32 = 0xfee0_0380;
const DIVIDE: u32 = 0xfee0_03e0;
/// Of the IO-APIC.
const IOREGSEL: u32 = 0xfec0_0000;
const IOWIN: u32 = 0xfec0_0010;

/// Where each processor says that it listens, and the first that the lines are set up.
const READY: [u32; 2] = [0x800, 0x804];

/// Memory: RAM for all regions, and a hole behind each vCPU's last page.
const RAM: [(u64, usize); 2] = [(0, 0x4_0000), (0x5_0000, 0x1_0000)];

pub(super) fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&RAM.map(|(start, length)| (GuestAddress(start), length))).unwrap()
}

/// All of memory but for stacks and moments.
pub(super) fn compared(memory: &GuestMemory) -> Vec<u8> {
    let mut all = Vec::new();
    for (start, length) in RAM {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(start)).unwrap();
        if start == 0 {
            for index in 0..2 {
                bytes[Region(index).stack()].fill(0);
            }
        }
        all.extend(bytes);
    }
    all
}

/// Everything, for a copy.
pub(super) fn copy(memory: &GuestMemory) -> GuestMemory {
    let copy = self::memory();
    for (start, length) in RAM {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(start)).unwrap();
        copy.write_slice(&bytes, GuestAddress(start)).unwrap();
    }
    copy
}

/// Where a vCPU has what, in 64 KiB of its own.
#[derive(Clone, Copy)]
struct Region(u32);

impl Region {
    fn at(self, offset: u32) -> u32 {
        0x1_0000 * (self.0 + 1) + offset
    }

    fn level(self) -> u8 {
        vector::LEVEL + self.0 as u8
    }

    fn handler(self, vector: u8) -> u64 {
        u64::from(self.at(0x5000 + 0x40 * (u32::from(vector) & 0x7f)))
    }

    fn stack(self) -> Range<usize> {
        self.at(0x7800) as usize..self.at(0x8000) as usize
    }

    fn idt(self) -> u32 {
        self.at(0x8000)
    }

    fn counter(self, vector: u8) -> u32 {
        self.at(0x9000 + 4 * u32::from(vector))
    }

    /// The time-stamp counter as it was seen last; cleared in the end.
    fn seen(self) -> u32 {
        self.at(0x9800)
    }

    fn log(self) -> u32 {
        self.at(0xa000)
    }

    /// Over a page boundary.
    fn buffer(self) -> u32 {
        self.at(0xefd0)
    }

    /// Memory-mapped registers of its device, over a page boundary.
    fn device(self) -> u32 {
        0xd000_0fd8 + 0x1_0000 * self.0
    }

    /// Two bytes below the end of RAM.
    fn edge_of_ram(self) -> u32 {
        let (start, length) = RAM[self.0 as usize];
        start as u32 + length as u32 - 2
    }
}

/// Puts a random guest for `vcpus` vCPUs, one or two, into the machine's memory: the vCPUs at its start.
pub(super) fn load(world: &World, vcpus: u32, dice: &mut Dice) -> Vec<Box<dyn Vcpu>> {
    let meetings = dice.below(4);
    (0..vcpus)
        .map(|index| {
            let region = Region(index);
            let mut program = Program {
                region,
                bootstrap: index == 0,
                partner: (vcpus > 1).then(|| 1 - index),
                pit_by_pic: dice.one_in(2),
                dice: Dice(dice.number()),
                expected: [0; 256],
            };
            world.code(32, region.at(0).into(), |a| program.write(a, meetings));
            program.handlers(world);
            start(world, region)
        })
        .collect()
}

fn start(world: &World, region: Region) -> Box<dyn Vcpu> {
    let mut vcpu = world.flat(region.0);
    let mut cpu = vcpu.cpu().unwrap();
    cpu.rip = region.at(0).into();
    cpu.gpr.set(gpr::RSP, region.stack().end as u64);
    cpu.idtr.base = region.idt().into();
    vcpu.set_cpu(&cpu).unwrap();
    vcpu
}

/// The program of one vCPU. EBX is where the log goes on.
struct Program {
    region: Region,
    bootstrap: bool,
    partner: Option<u32>,
    dice: Dice,
    /// The PIT's interrupts come through the PICs, else through the IO-APIC; a guest that changes its mind may see the
    /// same one on both ways.
    pit_by_pic: bool,
    /// How often each vector will have come.
    expected: [u32; 256],
}

impl Program {
    fn write(&mut self, a: &mut CodeAssembler, meetings: u64) -> Result {
        a.mov(ebx, self.region.log())?;
        a.mov(dword_ptr(SVR), 0x1ff)?;
        a.mov(dword_ptr(DIVIDE), 0b1011)?;
        if self.bootstrap {
            self.set_up_lines(a)?;
        }
        a.sti()?;
        self.come_up(a)?;
        for _ in 0..meetings {
            self.phase(a)?;
            self.meet(a)?;
        }
        self.phase(a)?;
        self.end(a)
    }

    /// The lines of all vCPUs lead to them; the PICs are masked.
    fn set_up_lines(&mut self, a: &mut CodeAssembler) -> Result {
        a.mov(al, 0xff)?;
        a.out(0x21, al)?;
        a.out(0xa1, al)?;
        for index in 0..=self.partner.unwrap_or(0) {
            let [level, edge] = lines(index);
            redirect(a, level, 0x8000 | (u32::from(vector::LEVEL) + index), index)?;
            redirect(a, edge, u32::from(vector::EDGE), index)?;
        }
        Ok(())
    }

    /// Both processors listen before anybody sends anything.
    fn come_up(&mut self, a: &mut CodeAssembler) -> Result {
        let Some(partner) = self.partner else { return Ok(()) };
        a.mov(dword_ptr(READY[self.region.0 as usize]), 1)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.pause()?;
        a.cmp(dword_ptr(READY[partner as usize]), 1)?;
        a.jne(again)
    }

    /// Something that takes time, and meanwhile something else.
    fn phase(&mut self, a: &mut CodeAssembler) -> Result {
        let timer = self.dice.below(if self.bootstrap { 4 } else { 3 });
        let nanoseconds = 1000 + self.dice.below(200_000) as u32;
        match timer {
            0 => self.one_shot(a, nanoseconds)?,
            1 => self.deadline(a, nanoseconds)?,
            3 if self.pit_by_pic => self.pit_by_pic(a, nanoseconds)?,
            3 => self.pit_by_io_apic(a, nanoseconds)?,
            _ => (),
        }
        for _ in 0..self.dice.below(6) {
            self.act(a)?;
        }
        let vector = match timer {
            0 | 1 => vector::TIMER,
            3 if self.pit_by_pic => vector::PIC,
            3 => vector::PIT,
            _ => return Ok(()),
        };
        self.wait(a, vector)
    }

    fn one_shot(&mut self, a: &mut CodeAssembler, nanoseconds: u32) -> Result {
        a.mov(dword_ptr(LVT_TIMER), u32::from(vector::TIMER))?;
        a.mov(dword_ptr(INITIAL_COUNT), nanoseconds)
    }

    fn deadline(&mut self, a: &mut CodeAssembler, nanoseconds: u32) -> Result {
        a.mov(dword_ptr(LVT_TIMER), 2 << 17 | u32::from(vector::TIMER))?;
        a.rdtsc()?;
        a.add(eax, nanoseconds)?;
        a.adc(edx, 0)?;
        a.mov(ecx, 0x6e0)?;
        a.wrmsr()?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)
    }

    fn pit_by_io_apic(&mut self, a: &mut CodeAssembler, nanoseconds: u32) -> Result {
        redirect(a, 2, vector::PIT.into(), 0)?;
        start_pit(a, nanoseconds)
    }

    fn pit_by_pic(&mut self, a: &mut CodeAssembler, nanoseconds: u32) -> Result {
        // The initialisation forgets the edges that came while it was masked.
        let words = [(0x20, 0x11), (0x21, u32::from(vector::PIC)), (0x21, 4), (0x21, 1)];
        for (port, value) in words {
            a.mov(al, value)?;
            a.out(port, al)?;
        }
        a.mov(al, 0x30)?;
        a.out(0x43, al)?;
        a.mov(al, 0xfe)?;
        a.out(0x21, al)?;
        start_pit(a, nanoseconds)
    }

    /// One thing that does not take time but with a device that answers late.
    fn act(&mut self, a: &mut CodeAssembler) -> Result {
        let (device, buffer) = (self.region.device(), self.region.buffer());
        let register = 4 * self.dice.below(16) as u32;
        let port = (ports::REGISTERS + self.dice.below(64)) as u32;
        let value = self.dice.number() as u32;
        match self.dice.below(18) {
            0 => {
                a.mov(edx, port)?;
                a.in_(eax, dx)?;
                self.log_eax(a)
            }
            1 => {
                a.mov(edx, port)?;
                a.mov(eax, value)?;
                a.out(dx, al)?;
                a.out(dx, eax)
            }
            2 => {
                a.mov(eax, dword_ptr(device + register))?;
                self.log_eax(a)
            }
            3 => a.add(dword_ptr(device + register), value as i32),
            4 => {
                a.mov(eax, value)?;
                a.xchg(dword_ptr(device + register), eax)?;
                self.log_eax(a)
            }
            5 => {
                a.lock().inc(dword_ptr(device + register))?;
                a.pushfd()?;
                a.pop(eax)?;
                a.and(eax, 0x8d4)?;
                self.log_eax(a)
            }
            6 => {
                a.push(dword_ptr(device + register))?;
                a.pop(dword_ptr(ebx))?;
                a.add(ebx, 4)
            }
            // A load and a store, part RAM and part device.
            7 => {
                let edge = self.region.edge_of_ram();
                a.mov(eax, dword_ptr(edge))?;
                self.log_eax(a)?;
                a.add(dword_ptr(edge), value as i32)
            }
            8 => {
                a.mov(edx, port)?;
                a.mov(edi, buffer + register)?;
                a.mov(ecx, 1 + value % 40)?;
                a.rep().insb()
            }
            9 => {
                a.mov(edx, port)?;
                a.mov(esi, buffer + register)?;
                a.mov(ecx, 1 + value % 20)?;
                a.rep().outsw()
            }
            10 => {
                a.mov(esi, device + register)?;
                a.mov(edi, buffer + register)?;
                a.mov(ecx, 1 + value % 20)?;
                a.rep().movsd()
            }
            11 => {
                a.mov(esi, buffer)?;
                a.mov(edi, device + register)?;
                a.mov(ecx, 1 + value % 20)?;
                a.rep().movsw()
            }
            // Two reads for each round, of a device and of RAM.
            12 => {
                a.mov(esi, device)?;
                a.mov(edi, buffer)?;
                a.mov(ecx, 5)?;
                a.repne().cmpsb()?;
                a.mov(eax, ecx)?;
                self.log_eax(a)
            }
            // Eight stores to a device, which wait for each other.
            13 => {
                a.cli()?;
                a.mov(ebp, esp)?;
                a.mov(esp, device + 0x40)?;
                a.pushad()?;
                a.mov(esp, ebp)?;
                a.sti()
            }
            14 => {
                a.fild(qword_ptr(device + register))?;
                a.fistp(qword_ptr(buffer + register))
            }
            15 => self.interrupted(a, ports::RAISE, self.region.level()),
            16 => self.interrupted(a, ports::PULSE, vector::EDGE),
            _ => self.time_goes_on(a),
        }
    }

    fn log_eax(&mut self, a: &mut CodeAssembler) -> Result {
        a.mov(dword_ptr(ebx), eax)?;
        a.add(ebx, 4)
    }

    /// Has the device interrupt.
    fn interrupted(&mut self, a: &mut CodeAssembler, port: u64, vector: u8) -> Result {
        a.mov(edx, port as u32)?;
        a.out(dx, al)?;
        self.wait(a, vector)
    }

    /// Writes down whether the time-stamp counter is past where it was seen last.
    fn time_goes_on(&mut self, a: &mut CodeAssembler) -> Result {
        let seen = self.region.seen();
        a.rdtsc()?;
        a.mov(esi, eax)?;
        a.mov(edi, edx)?;
        a.sub(eax, dword_ptr(seen))?;
        a.sbb(edx, dword_ptr(seen + 4))?;
        a.setae(al)?;
        a.movzx(eax, al)?;
        a.mov(dword_ptr(seen), esi)?;
        a.mov(dword_ptr(seen + 4), edi)?;
        for register in [edx, esi, edi] {
            a.xor(register, register)?;
        }
        self.log_eax(a)
    }

    /// An interrupt from one processor to the other and back.
    fn meet(&mut self, a: &mut CodeAssembler) -> Result {
        let Some(partner) = self.partner else { return Ok(()) };
        if !self.bootstrap {
            self.wait(a, vector::IPI)?;
        }
        a.mov(dword_ptr(ICR[1]), partner << 24)?;
        a.mov(dword_ptr(ICR[0]), 0x4000 | u32::from(vector::IPI))?;
        if self.bootstrap {
            self.wait(a, vector::IPI)?;
        }
        Ok(())
    }

    /// Waits until `vector` has come once more.
    fn wait(&mut self, a: &mut CodeAssembler, vector: u8) -> Result {
        let expected = &mut self.expected[usize::from(vector)];
        *expected += 1;
        let (mut again, mut done) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.cli()?;
        a.cmp(dword_ptr(self.region.counter(vector)), *expected)?;
        a.je(done)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(again)?;
        a.set_label(&mut done)?;
        a.sti()
    }

    /// Nothing is left that depends on time.
    fn end(&mut self, a: &mut CodeAssembler) -> Result {
        a.cli()?;
        for offset in [0, 4] {
            a.mov(dword_ptr(self.region.seen() + offset), 0)?;
        }
        for register in [ecx, esi, edi, ebp, eax] {
            a.xor(register, register)?;
        }
        a.mov(edx, ports::DONE as u32)?;
        a.out(dx, al)?;
        a.hlt()
    }

    fn handlers(&self, world: &World) {
        let region = self.region;
        for vector in vector::COUNTED {
            self.handler(world, vector, |a| {
                a.inc(dword_ptr(region.counter(vector)))?;
                a.mov(dword_ptr(EOI), 0)
            });
        }
        self.handler(world, vector::PIC, |a| {
            a.inc(dword_ptr(region.counter(vector::PIC)))?;
            a.mov(al, 0x20)?;
            a.out(0x20, al)
        });
        self.handler(world, region.level(), |a| {
            a.mov(edx, ports::STATUS as u32)?;
            a.in_(al, dx)?;
            a.inc(dword_ptr(region.counter(region.level())))?;
            a.mov(dword_ptr(EOI), 0)
        });
    }

    fn handler(&self, world: &World, vector: u8, body: impl FnOnce(&mut CodeAssembler) -> Result) {
        let address = self.region.handler(vector);
        world.code(32, address, |a| {
            a.push(eax)?;
            a.push(edx)?;
            body(a)?;
            a.pop(edx)?;
            a.pop(eax)?;
            a.iretd()
        });
        world.gate(u64::from(self.region.idt()), vector, address);
    }
}

/// Writes redirection entry `pin`, for vCPU `to`.
fn redirect(a: &mut CodeAssembler, pin: u32, entry: u32, to: u32) -> Result {
    for (index, value) in [(0x11 + 2 * pin, to << 24), (0x10 + 2 * pin, entry)] {
        a.mov(dword_ptr(IOREGSEL), index)?;
        a.mov(dword_ptr(IOWIN), value)?;
    }
    Ok(())
}

/// Has counter 0 of the PIT raise its output once.
fn start_pit(a: &mut CodeAssembler, nanoseconds: u32) -> Result {
    a.mov(al, 0x30)?;
    a.out(0x43, al)?;
    let count = nanoseconds / 838 + 1;
    for byte in [count & 0xff, count >> 8] {
        a.mov(al, byte)?;
        a.out(0x40, al)?;
    }
    Ok(())
}
