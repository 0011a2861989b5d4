//! A device that goes away while it is asked.

use iced_x86::code_asm::*;
use serde_json::json;

use crate::code::{COM1, assemble, print};
use crate::world::World;

#[test]
fn rule_22_a_device_that_goes_away_reads_as_ones_is_an_event_and_the_guest_goes_on() {
    // Four reads of the clock's data port, of a width that grows; of each the guest says whether it was all ones.
    let code = assemble(|a| {
        let yes = |a: &mut CodeAssembler| -> Result<(), IcedError> {
            // AL is 0 if it was, and is made a letter.
            a.setne(al)?;
            a.add(al, i32::from(b'o'))?;
            a.mov(dx, COM1)?;
            a.out(dx, al)
        };
        for (size, ones) in [(1, 0xff), (1, 0xff), (1, 0xff), (2, 0xffff)] {
            a.xor(eax, eax)?;
            a.mov(dx, 0x71)?;
            if size == 1 {
                a.in_(al, dx)?;
            } else {
                a.in_(ax, dx)?;
            }
            a.cmp(eax, ones)?;
            yes(a)?;
        }
        // A write to it has no effect, and is no obstacle.
        a.mov(dx, 0x71)?;
        a.out(dx, al)?;
        print(a, "!")?;
        a.cli()?;
        a.hlt()
    });
    let world = World::boot(&code, 1, &json!([{"device": "rtc", "us": "lost", "after": 1}]));
    let mut console = world.console();
    console.expect("pooo!");
    assert_eq!(world.counter("rtc", "lost"), 4);
    assert_eq!(world.counter("rtc", "reads"), 4);
    assert_eq!(world.counter("vcpu0", "parked"), 4, "each was a late answer");
    world.wait_event("device gone", 1);
    let events = world.events();
    let (_, properties) = events.iter().find(|(event, _)| event == "device gone").unwrap();
    assert_eq!(properties["device"], "rtc");
    assert_eq!(properties["address"], "port 0x71");
    world.put("vm.shutdown");
}
