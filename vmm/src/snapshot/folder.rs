//! A snapshot's folder: there is a whole one, or the one before, or none.
//!
//! # Purpose
//! A snapshot is written where nobody looks, into a hidden sibling of its folder, and takes its name only when every byte
//! has reached the disk. Whatever ends the writing (a full disk, a kill, the host's power) the name leads to what it led
//! to before.
//!
//! # Invariants
//! - Who writes for a folder holds a lock (`flock`) on the hidden sibling, and before that takes a folder's place it holds
//!   the lock on that one too. A lock goes with its process, so a sibling that can be locked is a leftover.
//! - Only files of a snapshot are ever removed: a folder with anything else in it is refused.
//! - Who reads has the folder open, and then its files: a new snapshot in the same place is another folder and other
//!   files, so what is open stays as it is.
//!
//! # Life
//! [`Draft::begin`] -[`create`](Draft::create) each file and write it-> -[`publish`](Draft::publish)-> the folder.
//! A draft that is dropped unpublished is removed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::SnapshotError;

/// The files of a snapshot.
pub(super) const CONFIG: &str = "config.json";
pub(super) const STATE: &str = "state.json";
pub(super) const MEMORY: &str = "memory";

const FILES: [&str; 3] = [CONFIG, STATE, MEMORY];

/// How often a folder that is being replaced is looked up again.
const ATTEMPTS: u32 = 100;

/// Guest memory is the guest's secret.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const FOLDER_MODE: Mode = Mode::RWXU;

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A snapshot's folder in the making.
#[derive(Debug)]
pub(super) struct Draft {
    place: Place,
    /// Locked as long as it is open.
    folder: OwnedFd,
    files: Vec<(&'static str, File)>,
    published: bool,
}

/// Where a snapshot is to be.
#[derive(Debug)]
struct Place {
    /// As the caller named it, for messages.
    path: PathBuf,
    parent: OwnedFd,
    name: OsString,
    /// The name of the sibling that is written into.
    hidden: OsString,
}

/// What a name leads to.
enum Found {
    Nothing,
    Empty(OwnedFd),
    Snapshot(OwnedFd),
}

impl Draft {
    /// Begins a snapshot at `destination`: a free path, an empty folder, or a snapshot, which stays what it is until
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`SnapshotError`] if nothing can be written there, if something else is there, or if another process writes there.
    pub(super) fn begin(destination: &Path) -> Result<Self, SnapshotError> {
        let place = Place::of(destination)?;
        let mode = match place.look()? {
            Found::Nothing => FOLDER_MODE,
            // Whoever made the folder for us has said who may look into it.
            Found::Empty(folder) | Found::Snapshot(folder) => {
                let stat = rustix::fs::fstat(&folder).map_err(|errno| place.unwritable(errno))?;
                Mode::from_raw_mode(stat.st_mode & 0o777)
            }
        };
        let folder = place.lock_hidden()?;
        let draft = Self {
            place,
            folder,
            files: Vec::new(),
            published: false,
        };
        draft.place.clear(&draft.folder)?;
        rustix::fs::fchmod(&draft.folder, mode).map_err(|errno| draft.place.unwritable(errno))?;
        Ok(draft)
    }

    /// The path of a file in the finished folder, for messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.place.path.join(name)
    }

    /// Makes a file to be written.
    ///
    /// # Errors
    /// [`SnapshotError::Write`].
    pub(super) fn create(&mut self, name: &'static str) -> Result<&mut File, SnapshotError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.folder, name, flags, FILE_MODE);
        let file = file.map_err(|errno| self.unwritable(name, errno.into()))?;
        self.files.push((name, File::from(file)));
        Ok(&mut self.files.last_mut().expect("it was pushed above").1)
    }

    /// Waits until everything has reached the disk.
    fn seal(&self) -> Result<(), SnapshotError> {
        // The first is the memory, and is waited for at once. The system is told to begin with the small ones: it finds room
        // for them now, and so the turn of its journal that takes the memory's place takes theirs along, instead of one
        // turn for each. (Not with the memory: this advice also has the system forget what it has written, and whoever
        // restores soon would read all of it from the disk.) Where that is not how it works nothing is lost.
        for (_, file) in self.files.iter().skip(1) {
            let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
        }
        for (name, file) in &self.files {
            file.sync_all().map_err(|source| self.unwritable(name, source))?;
        }
        rustix::fs::fsync(&self.folder).map_err(|errno| self.place.unwritable(errno))
    }

    /// That the file `name` cannot be written.
    pub(super) fn unwritable(&self, name: &str, source: io::Error) -> SnapshotError {
        SnapshotError::Write {
            path: self.path(name),
            source,
        }
    }

    /// Gives the folder its name, in place of what had it before.
    ///
    /// # Errors
    /// [`SnapshotError`] as [`begin`](Self::begin); what was there before is still there.
    pub(super) fn publish(mut self) -> Result<(), SnapshotError> {
        self.seal()?;
        let place = &self.place;
        let failed = |errno: Errno| place.unwritable(errno);
        let replaced = match place.look()? {
            Found::Nothing | Found::Empty(_) => {
                rustix::fs::renameat(&place.parent, &place.hidden, &place.parent, &place.name).map_err(failed)?;
                None
            }
            Found::Snapshot(old) => {
                place.lock(&old)?;
                place.exchange()?;
                Some(old)
            }
        };
        self.published = true;
        rustix::fs::fsync(&place.parent).map_err(failed)?;
        if let Some(old) = replaced {
            // It bears the hidden name now, and whoever writes here next would remove it too.
            place.remove_hidden(&old);
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            self.place.remove_hidden(&self.folder);
        }
    }
}

impl Place {
    fn of(destination: &Path) -> Result<Self, SnapshotError> {
        let no_parent = || SnapshotError::NoParent {
            path: destination.to_owned(),
        };
        let unwritable = |source| SnapshotError::Write {
            path: destination.to_owned(),
            source,
        };
        // Where there is something its real name counts: a link to a snapshot stays a link.
        let real = match destination.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => destination.to_owned(),
            Err(error) => return Err(unwritable(error)),
        };
        let name = real.file_name().ok_or_else(no_parent)?.to_owned();
        let parent = real
            .parent()
            .map(|parent| {
                if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    parent
                }
            })
            .ok_or_else(no_parent)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => no_parent(),
            errno => unwritable(errno.into()),
        })?;
        let hidden = [b".", name.as_bytes(), b".reprise-draft"].concat();
        Ok(Self {
            path: destination.to_owned(),
            parent,
            name,
            hidden: OsString::from_vec(hidden),
        })
    }

    fn unwritable(&self, errno: Errno) -> SnapshotError {
        SnapshotError::Write {
            path: self.path.clone(),
            source: errno.into(),
        }
    }

    fn foreign(&self) -> SnapshotError {
        SnapshotError::Foreign {
            path: self.path.clone(),
        }
    }

    /// What there is under the name.
    fn look(&self) -> Result<Found, SnapshotError> {
        let folder = match rustix::fs::openat(&self.parent, &self.name, FOLDER, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(self.foreign()),
            Err(errno) => return Err(self.unwritable(errno)),
        };
        let names = names(&folder).map_err(|errno| self.unwritable(errno))?;
        if names.is_empty() {
            Ok(Found::Empty(folder))
        } else if names.iter().all(|name| FILES.iter().any(|file| name == file))
            && names.iter().any(|name| name == STATE)
        {
            Ok(Found::Snapshot(folder))
        } else {
            Err(self.foreign())
        }
    }

    fn lock(&self, folder: &OwnedFd) -> Result<(), SnapshotError> {
        match rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(SnapshotError::InUse {
                path: self.path.clone(),
            }),
            Err(errno) => Err(self.unwritable(errno)),
        }
    }

    /// Makes the hidden sibling, or takes one that was left behind.
    fn lock_hidden(&self) -> Result<OwnedFd, SnapshotError> {
        let failed = |errno| self.unwritable(errno);
        for _ in 0..ATTEMPTS {
            match rustix::fs::mkdirat(&self.parent, &self.hidden, FOLDER_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
            let folder = match rustix::fs::openat(&self.parent, &self.hidden, FOLDER, Mode::empty()) {
                Ok(folder) => folder,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            self.lock(&folder)?;
            // Whoever held the lock until now may have published or removed that folder.
            if leads_to(&self.parent, &self.hidden, &folder).map_err(failed)? {
                return Ok(folder);
            }
        }
        Err(SnapshotError::InUse {
            path: self.path.clone(),
        })
    }

    fn exchange(&self) -> Result<(), SnapshotError> {
        let (parent, flags) = (&self.parent, RenameFlags::EXCHANGE);
        rustix::fs::renameat_with(parent, &self.hidden, parent, &self.name, flags).map_err(|errno| {
            let source = match errno {
                Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP => io::Error::new(
                    io::ErrorKind::Unsupported,
                    "this file system cannot replace a folder at once; expected a free path",
                ),
                errno => errno.into(),
            };
            SnapshotError::Write {
                path: self.path.clone(),
                source,
            }
        })
    }

    /// Removes what an unfinished snapshot left in `folder`.
    fn clear(&self, folder: &OwnedFd) -> Result<(), SnapshotError> {
        for name in names(folder).map_err(|errno| self.unwritable(errno))? {
            rustix::fs::unlinkat(folder, &name, AtFlags::empty()).map_err(|errno| self.unwritable(errno))?;
        }
        Ok(())
    }

    /// Removes the hidden sibling, which is `folder`. What cannot be removed now is in nobody's way.
    fn remove_hidden(&self, folder: &OwnedFd) {
        let removed = self.clear(folder).and_then(|()| {
            rustix::fs::unlinkat(&self.parent, &self.hidden, AtFlags::REMOVEDIR).map_err(|errno| self.unwritable(errno))
        });
        if let Err(error) = removed {
            tracing::warn!(path = ?self.path, %error, "the leftovers of a snapshot cannot be removed");
        }
    }
}

/// A snapshot's folder, open; see the module.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    files: Vec<(&'static str, File)>,
}

impl Folder {
    /// Opens the folder at `path` and all of its files.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`] or [`SnapshotError::Read`].
    pub(super) fn open(path: &Path) -> Result<Self, SnapshotError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let unreadable = |path: PathBuf, errno: Errno| SnapshotError::Read {
            path,
            source: errno.into(),
        };
        let mut attempts = 0;
        'again: loop {
            attempts += 1;
            let folder = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| match errno {
                Errno::NOENT | Errno::NOTDIR => SnapshotError::Missing { path: path.to_owned() },
                errno => unreadable(path.to_owned(), errno),
            })?;
            let mut files = Vec::new();
            for name in FILES {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                match rustix::fs::openat(&folder, name, flags, Mode::empty()) {
                    Ok(file) if !is_file(&file) => {
                        return Err(SnapshotError::Format { path: path.join(name) });
                    }
                    Ok(file) => files.push((name, File::from(file))),
                    // Replaced and removed while we were looking: then another one is there.
                    Err(Errno::NOENT)
                        if attempts < ATTEMPTS && !leads_to(CWD, path.as_os_str(), &folder).unwrap_or(true) =>
                    {
                        continue 'again;
                    }
                    Err(errno) => return Err(unreadable(path.join(name), errno)),
                }
            }
            return Ok(Self {
                path: path.to_owned(),
                files,
            });
        }
    }

    /// The path of a file, for messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Takes a file out.
    pub(super) fn file(&mut self, name: &str) -> File {
        let at = self.files.iter().position(|(file, _)| *file == name);
        self.files
            .swap_remove(at.expect("all files are opened, and each is taken once"))
            .1
    }
}

fn is_file(file: &OwnedFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// What lies in `folder`.
fn names(folder: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Whether `name` in `parent` is the folder that is open as `folder`.
fn leads_to(parent: impl AsFd, name: &OsStr, folder: &OwnedFd) -> rustix::io::Result<bool> {
    let open = rustix::fs::fstat(folder)?;
    match rustix::fs::statat(parent, name, AtFlags::empty()) {
        Ok(found) => Ok((found.st_dev, found.st_ino) == (open.st_dev, open.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests;
