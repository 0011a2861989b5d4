//! Which system calls a thread may make, by what it is there for. As few as the guests of the tests need, on soft and on KVM.

use libc::*;

/// A filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// Of the whole process: what anybody in it may do.
    Process,
    /// Of a vCPU.
    Vcpu,
    /// Of a device's queue.
    Queue,
    /// Of what a console prints.
    Console,
    /// Of what is typed into a console.
    Keyboard,
    /// Of a device in another process.
    UserDevice,
}

impl Filter {
    /// Those of threads that serve a guest.
    #[cfg(test)]
    const THREADS: [Self; 5] = [Self::Vcpu, Self::Queue, Self::Console, Self::Keyboard, Self::UserDevice];
}

/// Whose ioctls there are: the second lowest byte of their numbers.
mod ioctl {
    /// Terminals and taps.
    pub const TERMINAL: u64 = b'T' as u64;
    /// Sockets, and interfaces of the network.
    pub const SOCKET: u64 = 0x89;
    /// Block devices.
    pub const BLOCK: u64 = 0x12;
    /// KVM.
    pub const KVM: u64 = 0xae;
}

/// What every thread does: memory, locks, the end of a thread, and files that are open.
const EVERY: &[c_long] = &[
    SYS_futex,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_exit,
    SYS_exit_group,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_set_robust_list,
    SYS_rseq,
    SYS_gettid,
    SYS_getpid,
    SYS_tgkill,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_restart_syscall,
    SYS_getrandom,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_read,
    SYS_readv,
    SYS_write,
    SYS_writev,
    SYS_close,
    SYS_fcntl,
    SYS_poll,
    SYS_ppoll,
    SYS_sendto,
    SYS_sendmsg,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_shutdown,
    SYS_openat,
];

/// A vCPU besides: it reads how the host schedules it, makes the events of interrupts, and the thread that watches a console.
const VCPU: &[c_long] = &[
    SYS_pread64,
    SYS_eventfd2,
    SYS_epoll_ctl,
    SYS_clone3,
    SYS_clone,
    SYS_prctl,
];

/// A queue besides: files and sockets that are open, and connections of vsock.
const QUEUE: &[c_long] = &[
    SYS_pread64,
    SYS_preadv,
    SYS_preadv2,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_lseek,
    SYS_fstat,
    SYS_statx,
    SYS_fallocate,
    SYS_ftruncate,
    SYS_fsync,
    SYS_fdatasync,
    SYS_socket,
    SYS_connect,
    SYS_accept4,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_timerfd_create,
    SYS_timerfd_settime,
];

/// What is typed besides: a socket's clients come and go.
const KEYBOARD: &[c_long] = &[SYS_accept4];

/// A device in another process besides: it is looked for again when its process was gone, and its interrupts are waited for.
const USER_DEVICE: &[c_long] = &[
    SYS_socket,
    SYS_connect,
    SYS_setsockopt,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
];

/// The whole process besides all of these: it opens files, makes threads, serves its API, writes snapshots, and confines its
/// threads.
const PROCESS: &[c_long] = &[
    SYS_unlink,
    SYS_access,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_newfstatat,
    SYS_fstatfs,
    SYS_readlink,
    SYS_readlinkat,
    SYS_getcwd,
    SYS_getdents64,
    SYS_mkdirat,
    SYS_unlinkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_fchmod,
    SYS_fadvise64,
    SYS_copy_file_range,
    SYS_flock,
    SYS_dup,
    SYS_memfd_create,
    SYS_pipe2,
    SYS_socketpair,
    SYS_bind,
    SYS_listen,
    SYS_getsockname,
    SYS_getpeername,
    SYS_rt_sigaction,
    SYS_rt_sigtimedwait,
    SYS_sched_setaffinity,
    SYS_kill,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_sysinfo,
    SYS_uname,
    SYS_prlimit64,
    SYS_umask,
    SYS_seccomp,
    SYS_landlock_create_ruleset,
    SYS_landlock_add_rule,
    SYS_landlock_restrict_self,
];

/// The calls that `filter` lets through whatever their arguments.
pub(super) fn of(filter: Filter) -> Vec<c_long> {
    let lists: &[&[c_long]] = match filter {
        Filter::Process => &[EVERY, VCPU, QUEUE, KEYBOARD, USER_DEVICE, PROCESS],
        Filter::Vcpu => &[EVERY, VCPU],
        Filter::Queue => &[EVERY, QUEUE],
        Filter::Console => &[EVERY],
        Filter::Keyboard => &[EVERY, KEYBOARD],
        Filter::UserDevice => &[EVERY, USER_DEVICE],
    };
    lists.concat()
}

/// Whose ioctls `filter` lets through.
pub(super) fn ioctls(filter: Filter) -> &'static [u64] {
    match filter {
        Filter::Process => &[ioctl::TERMINAL, ioctl::SOCKET, ioctl::BLOCK, ioctl::KVM],
        Filter::Vcpu => &[ioctl::KVM],
        Filter::Queue => &[ioctl::TERMINAL, ioctl::BLOCK, ioctl::KVM],
        Filter::Console => &[ioctl::TERMINAL],
        // The size of the window, and the line of the serial port.
        Filter::Keyboard => &[ioctl::TERMINAL, ioctl::KVM],
        // That a socket does not block, and where interrupts lead.
        Filter::UserDevice => &[ioctl::TERMINAL, ioctl::KVM],
    }
}

/// The calls that fail with EACCES. The C library opens files that it can do without, so opening is no reason to end.
pub(super) fn refused(filter: Filter) -> &'static [c_long] {
    match filter {
        Filter::Process | Filter::Vcpu => &[],
        Filter::Queue | Filter::Console | Filter::Keyboard | Filter::UserDevice => &[SYS_openat],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_list_lets_a_program_be_started_or_another_process_be_touched() {
        for filter in [&[Filter::Process][..], &Filter::THREADS].concat() {
            let calls = of(filter);
            for never in [
                SYS_execve,
                SYS_execveat,
                SYS_ptrace,
                SYS_process_vm_writev,
                SYS_mount,
                SYS_bpf,
            ] {
                assert!(!calls.contains(&never), "{filter:?} {never}");
            }
        }
    }

    #[test]
    fn a_thread_that_serves_a_guest_may_do_less_than_the_process_and_cannot_widen_it() {
        let process = of(Filter::Process);
        for filter in Filter::THREADS {
            let calls = of(filter);
            assert!(calls.iter().all(|call| process.contains(call)), "{filter:?}");
            for not_theirs in [
                SYS_bind,
                SYS_unlinkat,
                SYS_renameat,
                SYS_seccomp,
                SYS_landlock_restrict_self,
            ] {
                assert!(!calls.contains(&not_theirs), "{filter:?} {not_theirs}");
            }
            assert!(
                ioctls(filter)
                    .iter()
                    .all(|whose| ioctls(Filter::Process).contains(whose))
            );
        }
    }

    #[test]
    fn who_has_no_files_reaches_none_by_position_and_who_has_no_sockets_makes_none() {
        for filter in [Filter::Console, Filter::Keyboard, Filter::UserDevice] {
            for files in [SYS_pread64, SYS_pwrite64, SYS_fallocate, SYS_ftruncate, SYS_fsync] {
                assert!(!of(filter).contains(&files), "{filter:?} {files}");
            }
        }
        for filter in [Filter::Vcpu, Filter::Console, Filter::Keyboard] {
            assert!(
                !of(filter).contains(&SYS_socket) && !of(filter).contains(&SYS_connect),
                "{filter:?}"
            );
        }
    }
}
