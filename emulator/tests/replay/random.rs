//! Random instructions, answered late over memory that changes meanwhile, against the same ones answered at once.

use std::collections::BTreeMap;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use proptest::prelude::*;
use reprise_emulator::cpu::gpr;
use reprise_emulator::replay::Kind;
use reprise_emulator::{Direction, Entry, Exit};

use crate::guest::*;

type Form = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Instructions with operands at RBX, RSI, RDI and on the stack.
const FORMS: [Form; 40] = [
    |a| a.mov(rax, qword_ptr(rbx)),
    |a| a.mov(dword_ptr(rbx), ecx),
    |a| a.add(rax, qword_ptr(rbx)),
    |a| a.add(qword_ptr(rbx), rax),
    |a| a.sub(word_ptr(rbx), cx),
    |a| a.not(dword_ptr(rbx)),
    |a| a.cmp(qword_ptr(rbx), rax),
    |a| a.xchg(qword_ptr(rbx), rax),
    |a| a.lock().xadd(dword_ptr(rbx), ecx),
    |a| a.lock().cmpxchg(qword_ptr(rbx), rcx),
    |a| a.cmpxchg8b(qword_ptr(rbx)),
    |a| a.bts(dword_ptr(rbx), 3),
    |a| a.shl(qword_ptr(rbx), 5),
    |a| a.imul_2(rax, qword_ptr(rbx)),
    |a| a.mul(qword_ptr(rbx)),
    |a| a.push(qword_ptr(rbx)),
    |a| a.pop(qword_ptr(rbx)),
    |a| a.push(rax),
    |a| a.pop(rcx),
    |a| a.pushfq(),
    |a| a.leave(),
    |a| a.enter(16, 3),
    |a| a.movdqu(xmm1, xmmword_ptr(rbx)),
    |a| a.movdqu(xmmword_ptr(rbx), xmm1),
    |a| a.paddb(xmm1, xmmword_ptr(rbx)),
    |a| a.movsb(),
    |a| a.movsq(),
    |a| a.rep().movsb(),
    |a| a.rep().movsd(),
    |a| a.rep().stosd(),
    |a| a.lodsq(),
    |a| a.cmpsd(),
    |a| a.repe().cmpsb(),
    |a| a.repne().scasw(),
    |a| a.insd(),
    |a| a.rep().insb(),
    |a| a.outsw(),
    |a| a.movzx(eax, byte_ptr(rbx)),
    |a| a.fxsave(ptr(rbx)),
    |a| a.call(qword_ptr(rbx)),
];

/// Where an operand is, from two random numbers.
fn place(kind: u8, offset: u64) -> u64 {
    match kind % 6 {
        0 => DATA + 0x100 + offset,
        1 => DEVICE + 0x100 + offset,
        2 => DEVICE - 16 + offset % 32,
        3 => BEHIND - 16 + offset % 32,
        4 => DEVICE + 0xff0 + offset % 32,
        _ => DATA + 0xff0 + offset % 32,
    }
}

#[derive(Debug, Clone)]
struct Step {
    form: usize,
    places: [(u8, u64); 5],
    a: u64,
    count: u64,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0u8..6, 0u64..0x100);
    let places = [place(), place(), place(), place(), place()];
    (0..FORMS.len(), places, any::<u64>(), 0u64..5).prop_map(|(form, places, a, count)| Step { form, places, a, count })
}

fn prepare(guest: &mut Guest, step: &Step) {
    guest.put(CODE, &[0xf4; 16]);
    guest.code(CODE, 64, FORMS[step.form]);
    let mut at = step.places.map(|(kind, offset)| place(kind, offset));
    // Operands apart: what is read again after the answer, from where it was read before, may rightly have changed.
    for i in 1..at.len() {
        if at[..i].iter().any(|other| other.abs_diff(at[i]) < 0x40) {
            at[i] = DATA + 0x1100 + 0x100 * i as u64;
        }
    }
    let registers = [gpr::RBX, gpr::RSI, gpr::RDI, gpr::RSP, gpr::RBP];
    for (register, at) in registers.into_iter().zip(at) {
        guest.set(&[(register, at)]);
    }
    guest.set(&[(gpr::RAX, step.a), (gpr::RCX, step.count), (gpr::RDX, 0x77)]);
    guest.restart();
}

/// Overwritten memory: what was there, and what is there now.
type Scrambled = BTreeMap<u64, (u8, u8)>;

/// Overwrites all RAM that the instruction in flight has read but for the upper paging structures, which later
/// translations of the same instruction go through. What it will store there is told from what is written here.
fn scramble(guest: &mut Guest, end: &[u8], scrambled: &mut Scrambled) {
    let upper = PML4..PAGE_TABLE;
    for entry in guest.emulator.record().to_vec() {
        let question = entry.question;
        let in_ram = question.space == reprise_emulator::Space::Memory && question.address < RAM_SIZE;
        if !in_ram || question.kind == Kind::Device || upper.contains(&question.address) {
            continue;
        }
        for at in question.address..question.address + u64::from(question.width) {
            if scrambled.contains_key(&at) {
                continue;
            }
            let old = guest.read(at, 1) as u8;
            let new = [!old, !old ^ 0x10].into_iter().find(|new| *new != end[at as usize]);
            let new = new.expect("two candidates");
            guest.put(at, &[new]);
            scrambled.insert(at, (old, new));
        }
    }
}

/// Puts back what was overwritten and has not been stored to.
fn restore(guest: &mut Guest, scrambled: &mut Scrambled) {
    for (at, (old, new)) in core::mem::take(scrambled) {
        if guest.read(at, 1) == u64::from(new) {
            guest.put(at, &[old]);
        }
    }
}

/// Executes one instruction, each answer of which comes late; `end` is memory as it will be. Returns how often
/// something was overwritten.
fn run_scrambled(guest: &mut Guest, end: &[u8]) -> usize {
    let mut scrambled = Scrambled::new();
    let mut changes = 0;
    let mut entry = Entry::Resume;
    for _ in 0..10_000 {
        match guest.enter(entry) {
            Exit::Request(request) => {
                if request.direction == Direction::Read {
                    scramble(guest, end, &mut scrambled);
                    changes += scrambled.len();
                }
                // The CPU must not begin another instruction over memory that is not its own.
                guest.emulator.attention().call();
                entry = guest.serve(request);
            }
            Exit::Attention => {
                restore(guest, &mut scrambled);
                entry = Entry::Resume;
            }
            exit => {
                assert_eq!(exit, Exit::Halt);
                return changes;
            }
        }
    }
    panic!("there is no end");
}

/// Compares one sequence.
fn compare(steps: &[Step]) -> Result<usize, TestCaseError> {
    let (mut prompt, mut late) = (Guest::new(), Guest::new());
    let mut changes = 0;
    for step in steps {
        prepare(&mut prompt, step);
        prepare(&mut late, step);
        prop_assert_eq!(prompt.run(), Exit::Halt);
        let end = prompt.memory();
        changes += run_scrambled(&mut late, &end);
        prop_assert_eq!(&prompt.trace, &late.trace);
        prop_assert!(
            prompt.emulator.cpu() == late.emulator.cpu(),
            "{:x?}\n{:x?}",
            prompt.emulator.cpu(),
            late.emulator.cpu()
        );
        let memory = late.memory();
        let differs = (0..end.len()).find(|i| end[*i] != memory[*i]);
        prop_assert_eq!(differs, None, "memory");
        prop_assert_eq!(prompt.device(), late.device());
    }
    Ok(changes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn late_answers_over_changing_memory_make_no_difference(steps in prop::collection::vec(step(), 1..6)) {
        compare(&steps)?;
    }
}

#[test]
fn every_form_makes_no_difference_in_every_place() {
    let mut changes = 0;
    for form in 0..FORMS.len() {
        for kind in 0..6 {
            let places = [0, 1, 2, 3, 4].map(|i| ((kind + i) % 6, 0x20 * u64::from(i) + 13));
            let step = Step {
                form,
                places,
                a: 0x1234_5678_9abc_def0,
                count: 3,
            };
            match compare(&[step]) {
                Ok(more) => changes += more,
                Err(error) => panic!("form {form}, place {kind}: {error}"),
            }
        }
    }
    assert!(changes > 1000, "memory was overwritten only {changes} times");
}
