//! Unix sockets of our own: made without stealing one that somebody serves, gone when we are.
//!
//! A lock file beside the socket (`.NAME.lock`) is held while the socket is ours, so that two processes that start
//! at once do not both find the socket stale. The mode is that of the socket before it has a name, and it listens
//! only then: nothing is done to the name afterwards.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::directory::{Directory, single};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Longest path of a Unix socket, without the byte that ends it.
const PATH_MAX: usize = 107;

/// A socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program serves it.
    #[error("{0} is served by another program: stop that, or use another path")]
    Live(PathBuf),
    /// Something that is not a socket has that name.
    #[error("{0} exists and is no socket: move it away, or use another path")]
    NotASocket(PathBuf),
    /// A socket that nobody serves, but which is not ours to remove.
    #[error(
        "{0} is a socket of another user, or in a directory of another user: remove it, or use another path"
    )]
    NotOurs(PathBuf),
    /// Longer than the system takes.
    #[error("{0}: a path of a Unix socket has at most 107 bytes, and its last part 80")]
    TooLong(PathBuf),
    /// The system failed.
    #[error("{path}: {source}")]
    System {
        /// Path.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
}

/// A socket that is ours. Dropping it removes the file.
#[derive(Debug)]
pub struct Socket {
    directory: Directory,
    name: String,
    device: u64,
    inode: u64,
    lock_name: String,
    /// Closing it releases the lock.
    _lock: File,
}

impl Socket {
    /// Makes a socket of a mode and listens. A stale one of ours is removed, if `replace` says so.
    ///
    /// # Errors
    /// When the name is taken, or the system fails.
    pub fn bind(
        directory: &Directory,
        name: &str,
        mode: u32,
        replace: bool,
    ) -> Result<(Self, UnixListener), BindError> {
        let path = directory.path_of(name);
        let system = |source: io::Error| BindError::System {
            path: path.clone(),
            source,
        };
        single(name).map_err(system)?;
        let address = SocketAddrUnix::new(directory.place(name));
        let address = match address {
            Ok(address) if path.as_os_str().len() <= PATH_MAX => address,
            Ok(_) | Err(_) => return Err(BindError::TooLong(path)),
        };
        let (lock_name, lock) = lock(directory, name).map_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                BindError::Live(path.clone())
            } else {
                system(error)
            }
        })?;
        let make = || {
            remove_stale(directory, name, &address, replace)?;
            let socket = stream_socket().map_err(|error| system(error.into()))?;
            rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))
                .map_err(|error| system(error.into()))?;
            rustix::net::bind(&socket, &address).map_err(|error| match error {
                Errno::ADDRINUSE => BindError::Live(path.clone()),
                error => system(error.into()),
            })?;
            let found = directory.stat(name).map_err(|error| system(error.into()))?;
            rustix::net::listen(&socket, BACKLOG).map_err(|error| {
                // Made just now, and leads nowhere.
                let _ = directory.remove(name);
                system(error.into())
            })?;
            Ok((found, UnixListener::from(socket)))
        };
        let (found, listener) = make().inspect_err(|_| {
            // We hold the lock, so nobody else counts on the file.
            let _ = directory.remove(&lock_name);
        })?;
        let socket = Self {
            directory: directory.clone(),
            name: name.to_owned(),
            device: found.st_dev,
            inode: found.st_ino,
            lock_name,
            _lock: lock,
        };
        Ok((socket, listener))
    }

    /// Path by which it is known.
    pub fn path(&self) -> PathBuf {
        self.directory.path_of(&self.name)
    }

    /// Whether its name still leads to it. By its path: the directory itself may have been removed.
    pub fn is_there(&self) -> bool {
        let found = std::fs::symlink_metadata(self.path());
        found.is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = self.directory.stat(&self.name);
        if ours.is_ok_and(|found| (found.st_dev, found.st_ino) == (self.device, self.inode)) {
            // If it is gone already, so much the better.
            let _ = self.directory.remove(&self.name);
        }
        let _ = self.directory.remove(&self.lock_name);
    }
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Removes a socket of ours that nobody serves; refuses to touch anything else.
fn remove_stale(
    directory: &Directory,
    name: &str,
    address: &SocketAddrUnix,
    replace: bool,
) -> Result<(), BindError> {
    let path = directory.path_of(name);
    let system = |error: Errno| BindError::System {
        path: path.clone(),
        source: error.into(),
    };
    let found = match directory.stat(name) {
        Err(Errno::NOENT) => return Ok(()),
        found => found.map_err(system)?,
    };
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(BindError::NotASocket(path));
    }
    match rustix::net::connect(&stream_socket().map_err(system)?, address) {
        // Refused: the file outlived its program.
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        // No room in its backlog is a sign of life, too. So is a socket of another type.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => return Err(BindError::Live(path)),
        Err(error) => return Err(system(error)),
    }
    if !replace || found.st_uid != rustix::process::geteuid().as_raw() {
        return Err(BindError::NotOurs(path));
    }
    match directory.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(BindError::System {
            path: Path::to_owned(&path),
            source: error,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn lock(directory: &Directory, name: &str) -> io::Result<(String, File)> {
    let lock_name = format!(".{name}.lock");
    loop {
        let file = directory.open_or_create(&lock_name)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        // Whoever held it before may have removed the file that we opened.
        let ours = file.metadata()?;
        match directory.stat(&lock_name) {
            Ok(found) if (found.st_dev, found.st_ino) == (ours.dev(), ours.ino()) => {
                return Ok((lock_name, file));
            }
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
