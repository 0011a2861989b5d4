//! The processor that this program runs on, as seen from the parent: batches of cases go to a child and come back.
#![allow(unsafe_code, reason = "makes a process and memory that both share")]

use core::mem::size_of;
use std::io;
use std::ptr::NonNull;

use crate::sandbox;
use crate::state::Batch;

/// Milliseconds after which a batch is given up. Each takes less than one.
const PATIENCE: i32 = 20_000;

/// A child and what is shared with it.
pub struct Native {
    batch: NonNull<Batch>,
    child: Option<Child>,
}

struct Child {
    process: i32,
    requests: i32,
    replies: i32,
}

/// The child did not come back from the case of this number in its batch.
#[derive(Debug)]
pub struct Lost {
    /// Index in the batch.
    pub index: usize,
    /// What became of the child.
    pub how: &'static str,
}

impl Native {
    /// Makes the shared memory.
    ///
    /// # Errors
    /// Those of mmap.
    pub fn new() -> io::Result<Native> {
        // SAFETY: fresh memory, which zeroes are a valid state of.
        let memory = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                size_of::<Batch>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let batch = NonNull::new(memory.cast()).expect("mmap gives no null pointer");
        Ok(Native { batch, child: None })
    }

    /// The batch to be filled, or that has been run.
    pub fn batch(&mut self) -> &mut Batch {
        // SAFETY: the memory lives as long as `self`, every bit pattern is a `Batch`, and the child touches it only in `run`.
        unsafe { self.batch.as_mut() }
    }

    /// Runs the batch.
    ///
    /// # Errors
    /// [`Lost`] if the child died or hangs; the next call starts another one.
    pub fn run(&mut self) -> Result<(), Lost> {
        self.batch().index = 0;
        if self.child.is_none() {
            self.child = self.start().ok();
        }
        let Some(child) = &self.child else {
            return Err(Lost {
                index: 0,
                how: "cannot be started",
            });
        };
        let how = if !child.ask() {
            "died"
        } else {
            match child.wait() {
                Wait::Done => return Ok(()),
                Wait::Died => "died",
                Wait::Hangs => "hangs",
            }
        };
        self.child = None;
        let index = self.batch().index as usize;
        Err(Lost { index, how })
    }

    fn start(&mut self) -> io::Result<Child> {
        let mut requests = [0; 2];
        let mut replies = [0; 2];
        // SAFETY: plain system calls; the child calls only what may be called after a fork.
        unsafe {
            if libc::pipe2(requests.as_mut_ptr(), libc::O_CLOEXEC) < 0
                || libc::pipe2(replies.as_mut_ptr(), libc::O_CLOEXEC) < 0
            {
                return Err(io::Error::last_os_error());
            }
            let process = libc::fork();
            if process == 0 {
                libc::close(requests[1]);
                libc::close(replies[0]);
                sandbox::run(self.batch.as_ptr(), requests[0], replies[1]);
            }
            libc::close(requests[0]);
            libc::close(replies[1]);
            if process < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Child {
                process,
                requests: requests[1],
                replies: replies[0],
            })
        }
    }
}

enum Wait {
    Done,
    Died,
    Hangs,
}

impl Child {
    fn ask(&self) -> bool {
        // SAFETY: writes one byte.
        unsafe { libc::write(self.requests, [0u8].as_ptr().cast(), 1) == 1 }
    }

    fn wait(&self) -> Wait {
        let mut poll = libc::pollfd {
            fd: self.replies,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut byte = 0u8;
        // SAFETY: waits for one byte and reads it.
        unsafe {
            loop {
                match libc::poll(&raw mut poll, 1, PATIENCE) {
                    0 => return Wait::Hangs,
                    1.. => break,
                    _ => {}
                }
            }
            match libc::read(self.replies, (&raw mut byte).cast(), 1) {
                1 => Wait::Done,
                _ => Wait::Died,
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the process is our child and not yet waited for, so its number is its own.
        unsafe {
            libc::close(self.requests);
            libc::close(self.replies);
            libc::kill(self.process, libc::SIGKILL);
            libc::waitpid(self.process, core::ptr::null_mut(), 0);
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.child = None;
        // SAFETY: nobody else has the memory.
        unsafe { libc::munmap(self.batch.as_ptr().cast(), size_of::<Batch>()) };
    }
}

/// What keeps cases from being run on this processor, if anything does.
pub fn obstacle() -> Option<&'static str> {
    /// Bit of AT_HWCAP2: users may execute RDFSBASE and its kin.
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    // SAFETY: reads the auxiliary vector.
    let hwcap2 = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    if hwcap2 & HWCAP2_FSGSBASE == 0 {
        return Some("RDFSBASE and its kin cannot be used here");
    }
    if !std::arch::is_x86_feature_detected!("avx") {
        return Some("this processor has no AVX, whose state every case has");
    }
    None
}

/// Binds this thread, and the children that it will have, to one processor, and says what the limit of its segment
/// of the GDT that holds the processor's number is.
pub fn settle(thread: usize) -> u32 {
    let mut limit: u32 = 0;
    // SAFETY: plain system calls; LSL reads a limit.
    unsafe {
        let mut all: libc::cpu_set_t = core::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut all);
        let own: Vec<usize> = (0..1024).filter(|cpu| libc::CPU_ISSET(*cpu, &all)).collect();
        if let Some(cpu) = own.get(thread % own.len().max(1)) {
            let mut one: libc::cpu_set_t = core::mem::zeroed();
            libc::CPU_SET(*cpu, &mut one);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one);
        }
        core::arch::asm!("lsl {0:e}, {1:e}", inout(reg) limit, in(reg) 0x7b, options(nostack, nomem));
    }
    limit
}
