//! Stub until merged.
use crate::access::Stop;
use crate::careful::Careful;
use crate::cpu::Cpu;
use crate::event::{Event, Exception};

pub(crate) enum Combined {
    Deliver(Event),
    Shutdown,
}

pub(crate) fn deliver(_: &mut Cpu, _: &mut Careful, _: Event) -> Result<(), Stop> {
    Ok(())
}

pub(crate) fn combine(_: &Event, _: Exception, _: u64) -> Combined {
    Combined::Shutdown
}
