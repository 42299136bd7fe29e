//! Unix sockets of our own: made without stealing one that somebody serves, gone when we are.
//!
//! A lock file beside the socket (`.NAME.lock`) is held while the socket is ours, so that two nodes that
//! start at once do not both find the socket stale. The socket may be connected to by its owner and group
//! only, and by nobody before that is set: it does not listen until then.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Who may connect: owner and group.
const MODE: u32 = 0o660;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program serves it.
    #[error("{0} is served by another program: stop that, or use another path")]
    Live(PathBuf),
    /// Something that is not a socket has that name.
    #[error("{0} exists and is no socket: move it away, or use another path")]
    NotASocket(PathBuf),
    /// Longer than the system takes.
    #[error("{0}: a path of a Unix socket has at most 107 bytes")]
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
pub(super) struct Bound {
    path: PathBuf,
    device: u64,
    inode: u64,
    lock_path: PathBuf,
    /// Closing it lets the lock go.
    _lock: File,
}

/// Makes a socket and listens.
pub(super) fn bind(path: &Path) -> Result<(Bound, UnixListener), BindError> {
    let system = |source: io::Error| BindError::System {
        path: path.to_owned(),
        source,
    };
    let address = SocketAddrUnix::new(path).map_err(|_| BindError::TooLong(path.to_owned()))?;
    let (lock_path, lock) = lock(path).map_err(|error| {
        if error.kind() == io::ErrorKind::WouldBlock {
            BindError::Live(path.to_owned())
        } else {
            system(error)
        }
    })?;
    let made = replace_stale(path, &address).and_then(|()| {
        let socket = stream_socket().map_err(|error| system(error.into()))?;
        rustix::net::bind(&socket, &address).map_err(|error| system(error.into()))?;
        let listen = || -> io::Result<(fs::Metadata, UnixListener)> {
            fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
            rustix::net::listen(&socket, BACKLOG)?;
            let metadata = fs::symlink_metadata(path)?;
            Ok((metadata, UnixListener::from(socket)))
        };
        listen().map_err(|error| {
            // It was made just now, and leads nowhere.
            let _ = fs::remove_file(path);
            system(error)
        })
    });
    let (metadata, listener) = made.inspect_err(|_| {
        // We hold the lock, so nobody else counts on the file.
        let _ = fs::remove_file(&lock_path);
    })?;
    let bound = Bound {
        path: path.to_owned(),
        device: metadata.dev(),
        inode: metadata.ino(),
        lock_path,
        _lock: lock,
    };
    Ok((bound, listener))
}

fn stream_socket() -> Result<rustix::fd::OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Removes a socket that nobody serves; refuses to touch anything else.
fn replace_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    let system = |source: io::Error| BindError::System {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let probe = stream_socket().map_err(|error| system(error.into()))?;
    match rustix::net::connect(&probe, address) {
        // Refused: the file outlived its program.
        Err(Errno::CONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system(error)),
            Ok(()) | Err(_) => Ok(()),
        },
        Err(Errno::NOENT) => Ok(()),
        // No room in its backlog is a sign of life, too. So is a socket of another type.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(BindError::Live(path.to_owned())),
        Err(error) => Err(system(error.into())),
    }
}

fn lock(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let lock_path = path.with_file_name(format!(".{name}.lock"));
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(&lock_path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        // Whoever held it before may have removed the file that we opened.
        let ours = file.metadata()?;
        match fs::symlink_metadata(&lock_path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                return Ok((lock_path, file));
            }
            Ok(_) | Err(_) => {}
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let ours = |found: &fs::Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        if fs::symlink_metadata(&self.path).is_ok_and(|found| ours(&found)) {
            // If it is gone already, so much the better.
            let _ = fs::remove_file(&self.path);
        }
        let _ = fs::remove_file(&self.lock_path);
    }
}
