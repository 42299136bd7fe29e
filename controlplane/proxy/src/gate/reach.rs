//! Path resolution for another user: step by step, as the kernel would for a process of that user, so that the node's
//! own rights neither grant nor disclose more.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::GateError;

/// Symbolic links per path, as in the kernel.
const LINKS_MAX: usize = 40;

/// The socket of a user at a path.
pub(super) fn socket(path: &Path, uid: u32) -> Result<OwnedFd, GateError> {
    let system = |error: Errno| GateError::System {
        path: path.to_owned(),
        source: error.into(),
    };
    let (found, stat) = walk(path, uid).map_err(|error| match error {
        Stopped::Unseen => GateError::Unseen {
            path: path.to_owned(),
            uid,
        },
        Stopped::System(error) => system(error),
    })?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(system(Errno::CONNREFUSED));
    }
    if stat.st_uid != uid {
        return Err(GateError::Server {
            path: path.to_owned(),
            owner: stat.st_uid,
            uid,
        });
    }
    Ok(found)
}

enum Stopped {
    /// The user may not search a directory.
    Unseen,
    System(Errno),
}

impl From<Errno> for Stopped {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

fn walk(path: &Path, uid: u32) -> Result<(OwnedFd, Stat), Stopped> {
    let mut steps = steps(path.as_os_str());
    let (mut place, mut stat) = open(CWD, OsStr::new("/"))?;
    let mut links = 0;
    while let Some(step) = steps.pop_front() {
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        if !lets_pass(&stat, uid) {
            return Err(Stopped::Unseen);
        }
        let (next, found) = open(&place, &step)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
            (place, stat) = (next, found);
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(Errno::LOOP.into());
        }
        let target = rustix::fs::readlinkat(&next, "", Vec::new())?;
        let target = OsStr::from_bytes(target.as_bytes());
        if target.as_bytes().starts_with(b"/") {
            (place, stat) = open(CWD, OsStr::new("/"))?;
        }
        for step in self::steps(target).into_iter().rev() {
            steps.push_front(step);
        }
    }
    Ok((place, stat))
}

fn steps(path: &OsStr) -> VecDeque<OsString> {
    let parts = path.as_bytes().split(|byte| *byte == b'/');
    let named = parts.filter(|part| !part.is_empty());
    named.map(|part| OsStr::from_bytes(part).into()).collect()
}

fn open(place: impl std::os::fd::AsFd, name: &OsStr) -> Result<(OwnedFd, Stat), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::openat(place, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&found)?;
    Ok((found, stat))
}

/// Whether a user may search a directory, by user only: its groups are not known.
fn lets_pass(directory: &Stat, uid: u32) -> bool {
    let needed = match uid {
        0 => return true,
        uid if uid == directory.st_uid => 0o100,
        _ => 0o001,
    };
    directory.st_mode & needed != 0
}
