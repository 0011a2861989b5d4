//! System calls that no safe wrapper offers: transfers to and from guest memory where it lies, and ioctls of network
//! interfaces; and descriptors that their owners do not lend. All unsafe code of this crate is here.
//!
//! # Invariants
//! - A piece of a [`Scatter`] or [`Gather`] is memory that stays mapped for the lifetime in their type: guest memory, which the
//!   guest may change meanwhile and of which no reference is ever made, or bytes borrowed from the caller.
//! - A call is given no more pieces than the kernel takes ([`MOST_PIECES`]).

use std::ffi::c_ulong;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

/// The most pieces of one transfer, UIO_MAXIOV.
pub(crate) const MOST_PIECES: usize = 1024;

/// Pieces of memory, of which some may be done.
#[derive(Default)]
struct Pieces {
    all: Vec<libc::iovec>,
    done: usize,
}

impl Pieces {
    fn push(&mut self, base: *mut u8, length: usize) {
        self.all.push(libc::iovec {
            iov_base: base.cast(),
            iov_len: length,
        });
    }

    /// Those of the next call: a pointer to them, and how many.
    fn next(&self) -> (*const libc::iovec, i32) {
        let rest = &self.all[self.done..];
        (rest.as_ptr(), rest.len().min(MOST_PIECES) as i32)
    }

    /// Takes `length` bytes off the front.
    fn advance(&mut self, mut length: usize) {
        while let Some(piece) = self.all.get_mut(self.done) {
            let part = piece.iov_len.min(length);
            length -= part;
            if part < piece.iov_len {
                piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(part).cast();
                piece.iov_len -= part;
                return;
            }
            self.done += 1;
        }
    }

    /// Does `transfer` at `position` and behind until nothing is left; `none` is what it means if there is no more.
    fn finish(
        &mut self,
        mut position: u64,
        none: io::ErrorKind,
        transfer: impl Fn(*const libc::iovec, i32, i64) -> isize,
    ) -> io::Result<()> {
        // Pieces without bytes are done already.
        self.advance(0);
        while self.done < self.all.len() {
            let (pieces, count) = self.next();
            let at = i64::try_from(position).map_err(|_| io::ErrorKind::InvalidInput)?;
            match checked(|| transfer(pieces, count, at))? {
                0 => return Err(none.into()),
                length => {
                    self.advance(length);
                    position += length as u64;
                }
            }
        }
        Ok(())
    }
}

/// Memory to be written, in pieces.
#[derive(Default)]
pub(crate) struct Scatter<'a> {
    pieces: Pieces,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Scatter<'a> {
    pub(crate) fn push_guest(&mut self, slice: &VolatileSlice<'a>) {
        self.pieces.push(slice.ptr_guard_mut().as_ptr(), slice.len());
    }

    pub(crate) fn push(&mut self, bytes: &'a mut [u8]) {
        self.pieces.push(bytes.as_mut_ptr(), bytes.len());
    }

    /// Reads once, from wherever `file` stands; the number of bytes.
    pub(crate) fn read(&mut self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let (pieces, count) = self.pieces.next();
        // SAFETY: the pieces are memory that may be written for as long as this borrows them.
        checked(|| unsafe { libc::readv(file.as_raw_fd(), pieces, count) })
    }

    /// Fills every piece with what `file` has from `position` on.
    pub(crate) fn read_exact_at(&mut self, file: BorrowedFd<'_>, position: u64) -> io::Result<()> {
        let none = io::ErrorKind::UnexpectedEof;
        // SAFETY: as for `read`.
        let read = |pieces, count, at| unsafe { libc::preadv(file.as_raw_fd(), pieces, count, at) };
        self.pieces.finish(position, none, read)
    }
}

/// Memory to be read, in pieces.
#[derive(Default)]
pub(crate) struct Gather<'a> {
    pieces: Pieces,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    pub(crate) fn push_guest(&mut self, slice: &VolatileSlice<'a>) {
        self.pieces.push(slice.ptr_guard().as_ptr().cast_mut(), slice.len());
    }

    pub(crate) fn push(&mut self, bytes: &'a [u8]) {
        self.pieces.push(bytes.as_ptr().cast_mut(), bytes.len());
    }

    pub(crate) fn pieces(&self) -> usize {
        self.pieces.all.len()
    }

    /// Writes once, to wherever `file` stands; the number of bytes.
    pub(crate) fn write(&mut self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let (pieces, count) = self.pieces.next();
        // SAFETY: the pieces are memory that may be read for as long as this borrows them; the kernel does not write them.
        checked(|| unsafe { libc::writev(file.as_raw_fd(), pieces, count) })
    }

    /// Writes every piece to `file` from `position` on.
    pub(crate) fn write_all_at(&mut self, file: BorrowedFd<'_>, position: u64) -> io::Result<()> {
        let none = io::ErrorKind::WriteZero;
        // SAFETY: as for `write`.
        let write = |pieces, count, at| unsafe { libc::pwritev(file.as_raw_fd(), pieces, count, at) };
        self.pieces.finish(position, none, write)
    }
}

/// What `call` transferred, once no signal interrupts it.
fn checked(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(length) => return Ok(length),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Bytes of an interface's name, with a zero at its end.
pub(crate) const NAME_LENGTH: usize = 16;

/// What calls about network interfaces take and give: `struct ifreq`, whose second half is as the call has it.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct InterfaceRequest {
    pub(crate) name: [u8; NAME_LENGTH],
    pub(crate) data: [u8; 24],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// Calls that take and give an [`InterfaceRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InterfaceCall {
    /// Makes a file of /dev/net/tun a queue of an interface: flags; gives the interface's name.
    Attach,
    /// Of a queue: its interface's name and flags.
    Attached,
    /// Of a queue: whether it takes part.
    SetQueue,
    /// Gives the interface's flags.
    Flags,
    SetFlags,
    SetAddress,
    SetMask,
    SetHardwareAddress,
    SetMtu,
}

impl InterfaceCall {
    fn number(self) -> c_ulong {
        match self {
            Self::Attach => libc::TUNSETIFF as c_ulong,
            Self::Attached => libc::TUNGETIFF as c_ulong,
            Self::SetQueue => libc::TUNSETQUEUE as c_ulong,
            Self::Flags => libc::SIOCGIFFLAGS as c_ulong,
            Self::SetFlags => libc::SIOCSIFFLAGS as c_ulong,
            Self::SetAddress => libc::SIOCSIFADDR as c_ulong,
            Self::SetMask => libc::SIOCSIFNETMASK as c_ulong,
            Self::SetHardwareAddress => libc::SIOCSIFHWADDR as c_ulong,
            Self::SetMtu => libc::SIOCSIFMTU as c_ulong,
        }
    }
}

/// Makes `call` on `file`: a queue of a tap for the first three, a socket for the others.
pub(crate) fn interface(file: BorrowedFd<'_>, call: InterfaceCall, request: &mut InterfaceRequest) -> io::Result<()> {
    // SAFETY: each of these calls reads and writes at most an `ifreq`, which `InterfaceRequest` is as large as, and keeps no
    // pointer to it; on a file of any other kind the kernel refuses the number, or it is a call with the same argument.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), call.number() as _, std::ptr::from_mut(request)) };
    refused(result)
}

/// Sets what a tap does for those who read it: `TUN_F_*`.
pub(crate) fn set_offloads(tap: BorrowedFd<'_>, offloads: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as _, c_ulong::from(offloads)) };
    refused(result)
}

/// Sets the bytes of the header before each of a tap's frames.
pub(crate) fn set_header_length(tap: BorrowedFd<'_>, length: i32) -> io::Result<()> {
    // SAFETY: the call reads an `int`, which outlives it.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, std::ptr::from_ref(&length)) };
    refused(result)
}

/// Sets whether a tap stays when nobody has it open.
#[cfg(test)]
pub(crate) fn set_stays(tap: BorrowedFd<'_>, stays: bool) -> io::Result<()> {
    // SAFETY: the argument is a number.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST as _, c_ulong::from(stays)) };
    refused(result)
}

fn refused(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The descriptor of an event, for calls that take one.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the event closes its descriptor when it is dropped, which it is not while it is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_transfer_is_finished_however_many_pieces_it_has() {
        let content: Vec<u8> = (0..3 * MOST_PIECES + 7).map(|i| (i % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"head").unwrap();
        let mut gather = Gather::default();
        for piece in content.chunks(1) {
            gather.push(piece);
        }
        gather.push(&[]);
        gather.write_all_at(file.as_fd(), 4).unwrap();
        let mut bytes = vec![0; content.len()];
        let mut scatter = Scatter::default();
        for piece in bytes.chunks_mut(2) {
            scatter.push(piece);
        }
        scatter.read_exact_at(file.as_fd(), 4).unwrap();
        assert_eq!(bytes, content);
        let mut all = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut all).unwrap();
        assert_eq!(all, [b"head", &content[..]].concat());
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        let mut bytes = [0; 8];
        let mut scatter = Scatter::default();
        scatter.push(&mut bytes);
        let error = scatter.read_exact_at(file.as_fd(), 5).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let mut gather = Gather::default();
        gather.push(&[1]);
        assert!(gather.write_all_at(file.as_fd(), u64::MAX).is_err());
    }

    #[test]
    fn nothing_is_done_at_once() {
        let file = tempfile::tempfile().unwrap();
        Scatter::default().read_exact_at(file.as_fd(), 0).unwrap();
        Gather::default().write_all_at(file.as_fd(), 0).unwrap();
    }
}
