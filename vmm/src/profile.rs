//! What a guest executes, for flame graphs: samples by instruction counts, in folded stacks.
//!
//! # Purpose
//! Every so many instructions a vCPU of the software processor says where it is. Each line of the file that comes of it is one
//! stack, outermost first, and how many samples it was found in: `vcpu0;kernel;memcpy 812`, the form that flame-graph tools read.
//! A function is named by the kernel's symbols; without them, and in user space, its page is.
//! # Invariants
//! - A guest is not disturbed: it executes the same instructions as without. Neither does it make the table large: of stacks beyond
//!   [`STACKS`] the samples are counted together.
//! - Callers are those that frame pointers lead to, through addresses that symbols know; kernels without frame pointers have none.
//! # Life
//! [`Profile::open`] before the process is confined -> samples from each vCPU's thread -> [`Profile::write`] at the end.

mod symbols;

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use reprise_emulator::cpu::gpr;
use reprise_hypervisor::profile::{Profiler, Sample};

pub use symbols::Symbols;

/// Instructions between two samples, unless told otherwise: a prime, so that no loop keeps step with it.
const PERIOD: NonZeroU64 = NonZeroU64::new(99_991).expect("not zero");
/// Different stacks.
const STACKS: usize = 1 << 16;
/// Frames of a stack.
const FRAMES: usize = 64;
/// How far the next frame of a stack can be.
const STRIDE: u64 = 16 << 10;

/// What is asked for on the command line: `FILE` or `path=FILE`, with `symbols=FILE` and `every=INSTRUCTIONS` if need be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileOptions {
    /// Where the profile goes.
    pub path: PathBuf,
    /// A vmlinux with symbols, a System.map or a copy of the guest's /proc/kallsyms. Default: the kernel that is booted.
    pub symbols: Option<PathBuf>,
    /// Instructions between two samples.
    pub every: NonZeroU64,
}

impl FromStr for ProfileOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut path, mut symbols, mut every) = (None, None, PERIOD);
        for (number, part) in text.split(',').enumerate() {
            match part.split_once('=') {
                Some(("path", value)) => path = Some(PathBuf::from(value)),
                Some(("symbols", value)) => symbols = Some(PathBuf::from(value)),
                Some(("every", value)) => {
                    every = value
                        .parse()
                        .map_err(|_| format!("every={value}: expected a number of instructions, 1 or more"))?;
                }
                None if number == 0 && !part.is_empty() => path = Some(PathBuf::from(part)),
                _ => {
                    return Err(format!(
                        "{part}: expected path=FILE, symbols=FILE or every=INSTRUCTIONS"
                    ));
                }
            }
        }
        Ok(Self {
            path: path.ok_or("the file is missing: expected FILE or path=FILE")?,
            symbols,
            every,
        })
    }
}

/// A profile in the making.
pub struct Profile {
    file: Mutex<File>,
    symbols: Symbols,
    period: NonZeroU64,
    stacks: Mutex<Stacks>,
}

#[derive(Default)]
struct Stacks {
    /// Samples by stack.
    counts: HashMap<Stack, u64>,
    /// Samples of all stacks for which there was no room.
    others: u64,
}

/// A vCPU, whether it was in user mode, and where it was, innermost first: functions, or pages where there are none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stack {
    vcpu: u32,
    user: bool,
    frames: Vec<Frame>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Frame {
    /// Number of a symbol.
    Function(usize),
    /// Address of a page.
    Page(u64),
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("period", &self.period)
            .finish_non_exhaustive()
    }
}

impl Profile {
    /// Makes the file, and reads symbols: those of `options`, or of `kernel` if it has any.
    ///
    /// # Errors
    /// If the file cannot be made, or the symbols that were asked for cannot be read.
    pub fn open(options: &ProfileOptions, kernel: Option<&PathBuf>) -> io::Result<Self> {
        let symbols = match (&options.symbols, kernel) {
            (Some(path), _) => Symbols::read(path)?,
            // One without symbols is a kernel all the same.
            (None, Some(kernel)) => Symbols::read(kernel).unwrap_or_default(),
            (None, None) => Symbols::default(),
        };
        Ok(Self {
            file: Mutex::new(File::create(&options.path)?),
            symbols,
            period: options.every,
            stacks: Mutex::default(),
        })
    }

    /// Instructions between two samples.
    #[must_use]
    pub fn period(&self) -> NonZeroU64 {
        self.period
    }

    /// Writes what there is so far, in place of what was written before.
    ///
    /// # Errors
    /// Those of writing a file.
    pub fn write(&self) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        let mut out = BufWriter::new(&mut *file);
        out.write_all(self.folded().as_bytes())?;
        out.flush()
    }

    /// The lines, most frequent first.
    fn folded(&self) -> String {
        let stacks = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines: Vec<(u64, String)> = stacks
            .counts
            .iter()
            .map(|(stack, count)| (*count, self.name(stack)))
            .collect();
        if stacks.others > 0 {
            lines.push((stacks.others, "others".to_owned()));
        }
        lines.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        lines.iter().fold(String::new(), |mut text, (count, stack)| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{stack} {count}");
            text
        })
    }

    fn name(&self, stack: &Stack) -> String {
        let mut text = format!("vcpu{};{}", stack.vcpu, if stack.user { "user" } else { "kernel" });
        for frame in stack.frames.iter().rev() {
            let _ = match frame {
                Frame::Function(number) => write!(text, ";{}", self.symbols.name(*number)),
                Frame::Page(address) => write!(text, ";[{address:#x}]"),
            };
        }
        text
    }

    fn frame(&self, address: u64, user: bool) -> Frame {
        let function = if user { None } else { self.symbols.find(address) };
        function.map_or(Frame::Page(address & !0xfff), Frame::Function)
    }

    /// The callers of the function that is executed, which frame pointers lead to.
    fn callers(&self, sample: &mut Sample<'_>, frames: &mut Vec<Frame>) {
        let mut frame = sample.cpu.gpr.get(gpr::RBP);
        let mut below = sample.cpu.gpr.get(gpr::RSP);
        while frames.len() < FRAMES && frame.is_multiple_of(8) && frame.wrapping_sub(below) < STRIDE {
            let mut words = [0; 16];
            if !(sample.memory)(frame, &mut words) {
                return;
            }
            let (next, address) = words.split_at(8);
            let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            // The call is before the address at which it returns.
            let Some(function) = self.symbols.find(word(address).wrapping_sub(1)) else {
                return;
            };
            frames.push(Frame::Function(function));
            below = frame.wrapping_add(16);
            frame = word(next);
        }
    }
}

impl Profiler for Profile {
    fn sample(&self, mut sample: Sample<'_>) {
        let cpu = sample.cpu;
        let user = cpu.cpl() == 3;
        let linear = cpu.linear_code(cpu.rip).unwrap_or(cpu.rip);
        let mut frames = vec![self.frame(linear, user)];
        if matches!(frames[0], Frame::Function(_)) {
            self.callers(&mut sample, &mut frames);
        }
        let stack = Stack {
            vcpu: sample.vcpu,
            user,
            frames,
        };
        let mut stacks = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        let Stacks { counts, others } = &mut *stacks;
        let is_full = counts.len() >= STACKS;
        match counts.get_mut(&stack) {
            Some(count) => *count += sample.periods,
            None if is_full => *others += sample.periods,
            None => drop(counts.insert(stack, sample.periods)),
        }
    }
}

#[cfg(test)]
mod tests {
    use reprise_emulator::Cpu;
    use reprise_emulator::cpu::{Attributes, Cr0, Efer, Seg, Segment};

    use super::*;

    fn profile(symbols: &str) -> Profile {
        let file = tempfile::tempfile().unwrap();
        Profile {
            file: Mutex::new(file),
            symbols: Symbols::of_map(symbols),
            period: PERIOD,
            stacks: Mutex::default(),
        }
    }

    const MAP: &str =
        "ffffffff81000000 T start\nffffffff81000100 t outer\nffffffff81000200 W inner\nffffffff81000300 D data\n";

    fn cpu(rip: u64, dpl: u16) -> Cpu {
        let mut cpu = Cpu::reset();
        cpu.cr0 = Cr0(Cr0::PE | Cr0::PG | Cr0::ET);
        cpu.efer = Efer(Efer::LME | Efer::LMA);
        cpu.segments[Seg::Cs] = Segment::flat(8 | dpl, Attributes(0xa09b | dpl << 5));
        cpu.segments[Seg::Ss] = Segment::flat(16 | dpl, Attributes(0xc093 | dpl << 5));
        cpu.rip = rip;
        cpu.refresh();
        cpu
    }

    fn sample(profile: &Profile, cpu: &Cpu, periods: u64, memory: &mut dyn FnMut(u64, &mut [u8]) -> bool) {
        let vcpu = 1;
        profile.sample(Sample {
            vcpu,
            periods,
            cpu,
            memory,
        });
    }

    #[test]
    fn functions_are_named_by_symbols_and_what_has_none_by_its_page() {
        let profile = profile(MAP);
        let nothing = &mut |_, _: &mut [u8]| false;
        for (rip, dpl) in [
            (0xffff_ffff_8100_0100, 0),
            (0xffff_ffff_8100_01ff, 0),
            (0xffff_ffff_8100_0300, 0),
            (0x1234, 0),
            (0xffff_ffff_8100_0100, 3),
        ] {
            sample(&profile, &cpu(rip, dpl), 1, nothing);
        }
        sample(&profile, &cpu(0xffff_ffff_8100_0200, 0), 5, nothing);
        let expected = "vcpu1;kernel;inner 5\nvcpu1;kernel;outer 2\nvcpu1;kernel;[0x1000] 1\n\
            vcpu1;kernel;[0xffffffff81000000] 1\nvcpu1;user;[0xffffffff81000000] 1\n";
        assert_eq!(profile.folded(), expected);
        profile.write().unwrap();
        profile.write().unwrap();
        let mut file = profile.file.lock().unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(io::read_to_string(&mut *file).unwrap(), expected, "once");
    }

    #[test]
    fn frame_pointers_lead_to_callers_as_long_as_they_make_sense() {
        let profile = profile(MAP);
        let mut cpu = cpu(0xffff_ffff_8100_0210, 0);
        cpu.gpr.set(gpr::RSP, 0x8000);
        cpu.gpr.set(gpr::RBP, 0x8010);
        let stack = [
            (0x8010, [0x8040, 0xffff_ffff_8100_0110_u64]),
            (0x8040, [0x9000, 0xffff_ffff_8100_0010]),
        ];
        let mut memory = |at: u64, bytes: &mut [u8]| {
            let found = stack.iter().find(|(address, _)| *address == at);
            let Some((_, words)) = found else { return false };
            bytes[..8].copy_from_slice(&words[0].to_le_bytes());
            bytes[8..].copy_from_slice(&words[1].to_le_bytes());
            true
        };
        sample(&profile, &cpu, 1, &mut memory);
        cpu.gpr.set(gpr::RBP, 0x7000);
        sample(&profile, &cpu, 3, &mut memory);
        assert_eq!(
            profile.folded(),
            "vcpu1;kernel;inner 3\nvcpu1;kernel;start;outer;inner 1\n"
        );
    }

    #[test]
    fn a_guest_that_is_everywhere_does_not_make_the_table_large() {
        let profile = profile("");
        let nothing = &mut |_, _: &mut [u8]| false;
        let mut cpu = cpu(0, 3);
        for page in 0..STACKS as u64 + 10 {
            cpu.rip = page << 12;
            sample(&profile, &cpu, 1, nothing);
        }
        cpu.rip = 0;
        sample(&profile, &cpu, 20, nothing);
        assert_eq!(profile.stacks.lock().unwrap().counts.len(), STACKS);
        assert!(profile.folded().starts_with("vcpu1;user;[0x0] 21\nothers 10\n"));
    }

    #[test]
    fn options_say_where_whose_symbols_and_how_often() {
        let parsed: ProfileOptions = "out,symbols=map,every=5".parse().unwrap();
        let every = NonZeroU64::new(5).unwrap();
        let expected = ProfileOptions {
            path: "out".into(),
            symbols: Some("map".into()),
            every,
        };
        assert_eq!(parsed, expected);
        assert_eq!("path=out".parse::<ProfileOptions>().unwrap().every, PERIOD);
        for wrong in ["", "every=5", "out,every=0", "out,other", "out,what=ever"] {
            assert!(wrong.parse::<ProfileOptions>().is_err(), "{wrong}");
        }
    }
}
