//! File descriptors that were inherited from whoever started this process, named by number on the command line.
//!
//! # Invariants
//! A number says nothing about who owns the descriptor, so it is never adopted: it is duplicated, the copy is ours and
//! closes on exec, and the original stays as it was. That also needs no unsafe code.

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use filedescriptor::FileDescriptor;

/// A copy of the inherited descriptor `fd`.
///
/// # Errors
/// The operating system's, if `fd` is not open.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    let closed = || io::Error::from_raw_os_error(9); // EBADF, whose text is "Bad file descriptor"
    if fd < 0 {
        return Err(closed());
    }
    let file: File = FileDescriptor::dup(&fd)
        .and_then(|copy| copy.as_file())
        .map_err(|_| closed())?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use super::inherited;

    #[test]
    fn the_copy_outlives_the_original() {
        let original = File::open("/proc/self/comm").unwrap();
        let mut copy: File = inherited(original.as_raw_fd()).unwrap().into();
        drop(original);
        let mut text = String::new();
        copy.read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
    }

    #[test]
    fn a_number_that_is_not_open_is_an_error() {
        assert!(inherited(-1).is_err());
        assert!(inherited(1 << 20).is_err());
    }

    use std::fs::File;
}
