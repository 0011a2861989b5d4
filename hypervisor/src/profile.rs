//! Looking at what a guest executes, every so many instructions.

use std::num::NonZeroU64;
use std::sync::Arc;

use reprise_emulator::Cpu;

/// Somebody who looks at vCPUs between two instructions.
pub trait Profiler: Send + Sync {
    /// Looks, on the thread of the vCPU, which waits meanwhile.
    fn sample(&self, sample: Sample<'_>);
}

/// A vCPU between two instructions.
pub struct Sample<'a> {
    /// Its number.
    pub vcpu: u32,
    /// How many periods have gone by since the last look: more than one after an instruction that repeats.
    pub periods: u64,
    /// Its registers.
    pub cpu: &'a Cpu,
    /// Fills bytes from a linear address on as they are at this moment; false if there is no memory. It disturbs nothing.
    pub memory: &'a mut dyn FnMut(u64, &mut [u8]) -> bool,
}

/// Who looks, and how often.
#[derive(Clone)]
pub(crate) struct Profiling {
    /// Instructions between two looks.
    pub period: NonZeroU64,
    /// Who looks.
    pub profiler: Arc<dyn Profiler>,
}
