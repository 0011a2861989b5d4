//! Filters of system calls, from the lists in [`calls`].

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use super::Seccomp;
use super::calls::{self, Filter};

/// PROT_EXEC in the argument `prot` of mmap and mprotect.
const PROT_EXEC: u64 = libc::PROT_EXEC as u64;
/// Arguments `prot` and `flags` of mmap for code that was translated.
const READ_EXEC: u64 = (libc::PROT_READ | libc::PROT_EXEC) as u64;
const MAP_SHARED: u64 = libc::MAP_SHARED as u64;
/// The byte of an ioctl's number that says whose it is.
const TYPE: u64 = 0xff00;

/// The filters of `kind`, to be applied one after the other.
///
/// # Errors
/// seccompiler's, if a list makes no filter.
pub(super) fn programs(kind: Filter, mode: Seccomp) -> Result<Vec<BpfProgram>, Error> {
    let otherwise = match mode {
        Seccomp::On => SeccompAction::Trap,
        Seccomp::Log => SeccompAction::Log,
        Seccomp::Off => return Ok(Vec::new()),
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls::of(kind) {
        rules.insert(call, Vec::new());
    }
    // Nothing of this process becomes code that was not there when it began, but for what the processor in software translates:
    // memory that is mapped a second time, to be executed and not written. A vCPU maps none.
    let not_code = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(PROT_EXEC), 0)?;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![SeccompRule::new(vec![not_code.clone()])?]);
    }
    if kind == Filter::Process {
        let is = |argument, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
        let translated = SeccompRule::new(vec![is(2, READ_EXEC)?, is(3, MAP_SHARED)?])?;
        rules.entry(libc::SYS_mmap).or_default().push(translated);
    }
    let ioctls = calls::ioctls(kind).iter().map(|whose| {
        let of = SeccompCmpOp::MaskedEq(TYPE);
        SeccompRule::new(vec![SeccompCondition::new(1, SeccompCmpArgLen::Dword, of, whose << 8)?])
    });
    let ioctls = ioctls.collect::<Result<Vec<_>, BackendError>>()?;
    if !ioctls.is_empty() {
        rules.insert(libc::SYS_ioctl, ioctls);
    }
    let allowed = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)?;
    let mut programs = vec![BpfProgram::try_from(allowed)?];
    let refused = calls::refused(kind);
    if !refused.is_empty() {
        let refused = refused.iter().map(|call| (*call, Vec::new())).collect();
        let errno = SeccompAction::Errno(libc::EACCES as u32);
        let refused = SeccompFilter::new(refused, SeccompAction::Allow, errno, TargetArch::x86_64)?;
        programs.push(BpfProgram::try_from(refused)?);
    }
    Ok(programs)
}

/// Applies filters to the calling thread, the widest last: a filter has to let the next one be installed.
///
/// # Errors
/// seccompiler's.
pub(super) fn apply(programs: &[BpfProgram]) -> Result<(), Error> {
    programs.iter().rev().try_for_each(|program| apply_filter(program))
}
