//! The program `reprise`; see [`reprise_vmm::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    reprise_vmm::cli::main()
}
