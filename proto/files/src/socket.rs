//! Listening Unix sockets. A socket that a process serves is never replaced; ours is removed on drop.
//!
//! A lock file beside the socket (`.NAME.lock`) is held as long as the socket, so that two processes that start at the
//! same time cannot both take it for stale. The mode is set before bind, and listen follows bind: the name itself is
//! never changed afterwards.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::directory::{Directory, check_name};

/// Connections waiting for accept.
const BACKLOG: i32 = 128;
/// Longest path of a Unix socket, without the terminating NUL, unix(7).
const PATH_MAX: usize = 107;

/// A socket cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process serves it.
    #[error("{0} is served by another program: stop that, or use another path")]
    Live(PathBuf),
    /// The name belongs to a file that is not a socket.
    #[error("{0} exists and is no socket: move it away, or use another path")]
    NotASocket(PathBuf),
    /// A stale socket that this process may not remove.
    #[error(
        "{0} is a socket of another user, or in a directory of another user: remove it, or use another path"
    )]
    NotOurs(PathBuf),
    /// Longer than `sun_path`.
    #[error("{0}: a path of a Unix socket has at most 107 bytes, and its last part 80")]
    TooLong(PathBuf),
    /// A system call failed.
    #[error("{path}: {source}")]
    System {
        /// Path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// A listening socket of this process. Dropping it removes the file.
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
    /// Binds a socket with a mode and listens. `replace` removes a stale socket of this user first.
    ///
    /// # Errors
    /// When the name is in use, or a system call fails.
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
        check_name(name).map_err(system)?;
        let address = SocketAddrUnix::new(directory.descriptor_path(name));
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
                // Bound, but does not listen.
                let _ = directory.remove(name);
                system(error.into())
            })?;
            Ok((found, UnixListener::from(socket)))
        };
        let (found, listener) = make().inspect_err(|_| {
            // The lock is still held, so no other process uses the file.
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

    /// Path of the socket, for messages.
    pub fn path(&self) -> PathBuf {
        self.directory.path_of(&self.name)
    }

    /// Whether the path still refers to this socket. Resolved anew: the directory may have been removed.
    pub fn exists(&self) -> bool {
        let found = std::fs::symlink_metadata(self.path());
        found.is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = self.directory.stat(&self.name);
        if ours.is_ok_and(|found| (found.st_dev, found.st_ino) == (self.device, self.inode)) {
            // Best effort: the name may be removed already.
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

/// Removes a stale socket of this user; refuses any other file.
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
        // The file outlived its process.
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        // A full backlog and another socket type also mean a live socket.
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
        // The previous holder may have removed the file after it was opened here.
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
