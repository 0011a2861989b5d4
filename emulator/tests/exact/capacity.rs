//! The room that an instruction's record has, against what every form really records where everything is as bad as it can
//! be; and the allocator, which no instruction calls.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use iced_x86::Mnemonic;
use reprise_emulator::replay::CAPACITY;
use reprise_emulator::{Entry, Event, Exit};

use crate::forms::{Form, forms};
use crate::late;
use crate::layout::*;
use crate::scene::Scene;
use crate::story::Tellers;
use crate::world::{Placement, World};

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does everything; a counter without a destructor is no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The form with as many prefixes as fit into 15 bytes, and as much to do as it can have.
fn longest(form: &Form) -> Form {
    let mut form = form.clone();
    if form.code.mnemonic() == Mnemonic::Enter {
        // Nested as deep as can be.
        *form.bytes.last_mut().expect("an opcode") = 31;
    }
    // DS, where it is anyway.
    let prefixes = vec![0x3e; 15 - form.bytes.len()];
    form.bytes.splice(..0, prefixes);
    form
}

/// Runs a scene in a world that is all device, so that every read is seen to be recorded.
fn record(world: &mut World, scene: &Scene) -> usize {
    world.load(&scene.cpu, &scene.image);
    world.largest = 0;
    world.run();
    world.largest
}

/// An interrupt whose stack is cut off by a page that is not there; the page fault finds none either, and the double fault
/// is delivered by a task switch, or on a stack over two pages.
fn troubled(form: &Form, mode: Mode) -> Scene {
    let Scene { mut cpu, image } = Scene::new(form, mode, Offsets::Byte, Marks::Clear);
    let mut image = Image(image);
    cpu.event = Some(Event::external(0x80));
    image.take_out(mode, KERNEL);
    // Rings 0 stay on the stack that they have.
    image.take_out(mode, STACK);
    if mode.is_long() {
        image.interrupt_stack(14, 2, KERNEL + PAGE + 0x10);
        image.interrupt_stack(8, 1, D + PAGE + 0x10);
    } else {
        image.task_gate(mode, 8);
    }
    Scene { cpu, image: image.0 }
}

#[test]
fn rule_1_an_event_whose_delivery_fails_twice_waits_in_the_middle_of_a_double_fault() {
    let mut tellers = Tellers::new();
    for mode in Mode::ALL.into_iter().filter(|mode| *mode != Mode::Real) {
        let form = forms().iter().find(|form| form.bits == mode.bits()).expect("a form");
        let scene = troubled(form, mode);
        let story = tellers.tell(&scene);
        let mut meddled = 0;
        for placement in Placement::MIXED {
            meddled += late::answer_late(&mut World::new(placement), &scene, &story, |_| true);
        }
        assert!(meddled > 10, "{mode:?}: {meddled}");
    }
}

#[test]
fn rule_16_no_instruction_form_exceeds_the_room_where_everything_is_as_bad_as_it_can_be() {
    let mut world = World::new(Placement::Everything);
    let mut most = (0, String::new());
    let mut see = |entries: usize, name: &dyn Fn() -> String| {
        assert!(entries <= CAPACITY, "{} needs {entries} of {CAPACITY}", name());
        if entries > most.0 {
            most = (entries, name());
        }
    };
    for (number, form) in forms().iter().map(longest).enumerate() {
        for mode in Mode::ALL.into_iter().filter(|mode| mode.bits() == form.bits) {
            // In turn, but for all that moves much.
            let moves_much = form.memory && (form.size == 0 || form.size > 64) || form.bytes.contains(&31);
            for offsets in [Offsets::Halves, Offsets::Byte] {
                let turn = number % 2 == usize::from(offsets == Offsets::Byte)
                    && number / 2 % 2 == usize::from(mode.is_user());
                if !turn && !moves_much {
                    continue;
                }
                let mut scene = Scene::new(&form, mode, offsets, Marks::Clear);
                if mode.is_long() {
                    five_levels(&mut scene.cpu);
                }
                see(record(&mut world, &scene), &|| format!("{form}, {mode:?}, {offsets:?}"));
            }
        }
    }
    for mode in Mode::ALL {
        let form = forms().iter().find(|form| form.bits == mode.bits()).expect("a form");
        let mut scene = troubled(form, mode);
        if mode.is_long() {
            five_levels(&mut scene.cpu);
        }
        let entries = record(&mut world, &scene);
        println!("{entries} entries: a double fault, {mode:?}");
        see(entries, &|| format!("a double fault, {mode:?}"));
    }
    println!("{} of {CAPACITY} entries: {}", most.0, most.1);
    assert!(most.0 > 100, "{most:?}");
}

#[test]
fn rule_16_no_instruction_allocates() {
    // The fast way decodes ahead and keeps that, which is not the instruction's doing; devices hold its code.
    let mut worlds = [Placement::Code, Placement::Everything].map(World::new);
    let mut passes = 0;
    for (i, form) in forms().iter().enumerate().filter(|(i, _)| i % 8 == 0) {
        let modes: Vec<_> = Mode::ALL.into_iter().filter(|mode| mode.bits() == form.bits).collect();
        let scene = Scene::new(form, modes[i / 8 % modes.len()], Offsets::Halves, Marks::Clear);
        let world = &mut worlds[i / 8 % 2];
        for warm in [false, true] {
            world.load(&scene.cpu, &scene.image);
            let mut entry = Entry::Resume;
            loop {
                let decoded = world.emulator.counters().blocks;
                let before = ALLOCATIONS.get();
                let exit = world
                    .emulator
                    .run(entry)
                    .expect("a later pass sees what the first one saw");
                let allocated = ALLOCATIONS.get() - before;
                let decoded = world.emulator.counters().blocks - decoded;
                assert!(
                    !warm || allocated == 0 || decoded > 0,
                    "{form} allocates {allocated} times"
                );
                match exit {
                    Exit::Request(request) => {
                        passes += usize::from(warm);
                        entry = world.serve(request);
                    }
                    _ => break,
                }
            }
        }
    }
    assert!(passes > 1000, "{passes}");
}
