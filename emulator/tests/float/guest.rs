//! The emulator executes one instruction, between FXRSTOR64 and FXSAVE64.

use std::sync::Arc;

use reprise_emulator::cpu::{Attributes, Cr0, Cr4, Efer, Seg, Segment, TableRegister};
use reprise_emulator::{
    Answer, Cpu, CpuidTable, Direction, Emulator, Entry, Exit, Host, Model, Ram, Reply, Request, Space,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::state::{DATA, Outcome, State};
use crate::tier;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const CODE: u64 = 0x8000;
const FX: u64 = 0x9000;
const RAM_DATA: u64 = 0xa000;
/// Beyond RAM: a device's registers.
const DEVICE: u64 = 0x20_0000;
const SIZE: usize = 0x10_0000;
const GPRS: [u8; 4] = [0, 1, 2, 3];

/// Where the memory operand lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Ram,
    /// A device, which the instruction is begun again for.
    Device,
}

struct Still;

impl Host for Still {
    fn tsc(&self) -> u64 {
        0
    }

    fn random(&self) -> u64 {
        0
    }
}

pub struct Guest {
    memory: GuestMemoryMmap<()>,
    ram: Arc<Ram>,
    emulator: Emulator,
    device: [u8; DATA],
}

impl Guest {
    pub fn new() -> Guest {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
        for (address, entry) in [
            (PML4, PDPT | 7),
            (PDPT, DIRECTORY | 7),
            (DIRECTORY, 0x87),
            (DIRECTORY + 8, DEVICE | 0x87),
        ] {
            memory.write_obj(entry, GuestAddress(address)).unwrap();
        }
        let ram = Arc::new(Ram::new(memory.clone()).unwrap());
        let mut emulator = Emulator::new(
            long_mode(),
            ram.clone(),
            Arc::new(Still),
            Arc::new(Model::new()),
            Arc::new(CpuidTable::default()),
        );
        tier::set(&mut emulator);
        Guest {
            memory,
            ram,
            emulator,
            device: [0; DATA],
        }
    }

    fn poke(&mut self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
        self.ram.written_by_host(address, bytes.len() as u64);
    }

    fn peek(&self, address: u64, bytes: &mut [u8]) {
        self.memory.read_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// Executes `instruction`.
    pub fn run(&mut self, instruction: &[u8], before: &State, place: Place) -> Outcome {
        // fxrstor64 [r13]; the instruction; fxsave64 [r13]; hlt
        let code = [
            &[0x49, 0x0f, 0xae, 0x4d, 0],
            instruction,
            &[0x49, 0x0f, 0xae, 0x45, 0, 0xf4],
        ]
        .concat();
        self.poke(CODE, &code);
        self.poke(FX, &before.fx);
        self.poke(RAM_DATA, &before.data);
        self.device = before.data;
        let mut cpu = long_mode();
        let operand = if place == Place::Ram { RAM_DATA } else { DEVICE };
        for (register, value) in [(6, operand), (7, operand), (13, FX)] {
            cpu.gpr.set(register, value);
        }
        for (register, value) in GPRS.into_iter().zip(before.gpr) {
            cpu.gpr.set(register, value);
        }
        cpu.flags = before.flags.into();
        cpu.xcr0 |= 4;
        for (vector, upper) in cpu.fpu.vectors.iter_mut().zip(before.upper) {
            let upper = u128::from_le_bytes(upper);
            (vector[2], vector[3]) = (upper as u64, (upper >> 64) as u64);
        }
        let exit = self.go(cpu);

        let cpu = self.emulator.cpu();
        let mut state = *before;
        self.peek(FX, &mut state.fx);
        let trapped = exit == Exit::Shutdown;
        if trapped {
            // FXSAVE was not reached.
            let fpu = &cpu.fpu;
            state.fx[2..4].copy_from_slice(&fpu.status.to_le_bytes());
            state.fx[4] = fpu.tags;
            for i in 0..8 {
                let register = fpu.registers[fpu.physical(i)];
                let at = 32 + 16 * usize::from(i);
                state.fx[at..at + 8].copy_from_slice(&register.significand.to_le_bytes());
                state.fx[at + 8..at + 10].copy_from_slice(&register.sign_exponent.to_le_bytes());
            }
            state.fx[24..28].copy_from_slice(&cpu.fpu.mxcsr.to_le_bytes());
            for i in 0..16 {
                state.fx[160 + 16 * i..][..16].copy_from_slice(&cpu.fpu.xmm(i as u8));
            }
        }
        for (upper, vector) in state.upper.iter_mut().zip(cpu.fpu.vectors) {
            *upper = (u128::from(vector[3]) << 64 | u128::from(vector[2])).to_le_bytes();
        }
        for (value, register) in state.gpr.iter_mut().zip(GPRS) {
            *value = cpu.gpr.get(register);
        }
        state.flags = cpu.flags.bits();
        match place {
            Place::Ram => self.peek(RAM_DATA, &mut state.data),
            Place::Device => state.data = self.device,
        }
        Outcome { state, trapped }
    }

    /// Executes `instruction` with `data` at rsi in a CPU that `change` has prepared, from a given x87 and SSE state:
    /// true if it raised an exception.
    pub fn faults(&mut self, instruction: &[u8], data: &[u8], change: impl FnOnce(&mut Cpu)) -> bool {
        let code = [instruction, &[0xf4]].concat();
        self.poke(CODE, &code);
        self.poke(RAM_DATA, data);
        let mut cpu = long_mode();
        cpu.gpr.set(6, RAM_DATA);
        change(&mut cpu);
        cpu.refresh();
        self.go(cpu) == Exit::Shutdown
    }

    /// The CPU after the last instruction.
    pub fn cpu(&self) -> &Cpu {
        self.emulator.cpu()
    }

    /// What is at rsi after the last instruction.
    pub fn data(&self) -> [u8; DATA] {
        let mut data = [0; DATA];
        self.peek(RAM_DATA, &mut data);
        data
    }

    /// The instruction is #UD.
    pub fn is_undefined(&mut self, instruction: &[u8]) -> bool {
        // With an operand of zeros no other exception is to be had.
        self.faults(instruction, &[0; DATA], |cpu| {
            cpu.gpr.set(7, RAM_DATA);
            cpu.xcr0 |= 4;
        })
    }

    fn go(&mut self, cpu: Cpu) -> Exit {
        self.emulator.set_cpu(cpu);
        let mut entry = Entry::Resume;
        loop {
            match self
                .emulator
                .run(entry)
                .expect("re-execution sees what the first pass saw")
            {
                Exit::Request(request) => {
                    entry = Entry::Answer(Answer {
                        id: request.id,
                        reply: Reply::Value(self.answer(request)),
                    });
                }
                exit @ (Exit::Halt | Exit::Shutdown) => return exit,
                exit => panic!("{exit:?}"),
            }
        }
    }

    fn answer(&mut self, request: Request) -> u64 {
        assert_eq!(request.space, Space::Memory);
        let at = (request.address - DEVICE) as usize;
        let size = usize::from(request.size);
        let mut bytes = [0; 8];
        match request.direction {
            Direction::Read => bytes[..size].copy_from_slice(&self.device[at..at + size]),
            Direction::Write(value) => self.device[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]),
            batch => panic!("no floating-point instruction makes {batch:?}"),
        }
        u64::from_le_bytes(bytes)
    }
}

/// 64-bit mode at privilege level 0, without interrupt descriptors: any exception ends in shutdown.
fn long_mode() -> Cpu {
    let mut cpu = Cpu::reset();
    cpu.cr0 = Cr0(Cr0::PE | Cr0::PG | Cr0::WP | Cr0::NE | Cr0::ET | Cr0::MP);
    cpu.cr3 = PML4;
    cpu.cr4 = Cr4(Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE);
    cpu.efer = Efer(Efer::LME | Efer::LMA);
    cpu.xcr0 = 3;
    cpu.idtr = TableRegister { base: 0, limit: 0 };
    let flat = |selector, attributes| Segment {
        selector,
        attributes: Attributes(attributes),
        limit: 0xffff_ffff,
        base: 0,
    };
    cpu.segments[Seg::Cs] = flat(0x8, 0xa09b);
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        cpu.segments[seg] = flat(0x10, 0xc093);
    }
    cpu.rip = CODE;
    cpu.refresh();
    cpu
}
