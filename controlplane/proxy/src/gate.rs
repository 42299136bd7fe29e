//! Authority over socket paths. A topic names a path, and the node connects to it with its own rights: the setter of
//! the path must not gain access that it does not have itself (confused deputy).
//!
//! Checked for every connection, not only when the path is set:
//!
//! * No path may lead to a Hyphae node: its `rpc.sock` treats the node's user as an administrator.
//! * A path set by another user of this host leads to servers of that user only, through directories that this user
//!   may search, and sockets are bound in directories of that user only. No connection is made before that is known.
//! * A remote administrator names sockets below the directories of `admin.socket_dirs`, without symbolic links.
//!
//! A chain through another program cannot be detected.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyphae_bus::topics::Authority;
use hyphae_files::{BindError, Directory, Socket};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tokio::net::UnixStream;

/// Mode of an outbound socket: owner and group may connect.
const MODE: u32 = 0o660;
/// Names of the processes of nodes (`/proc/PID/comm`): as they are started, and what [`Plane::set_name`] makes of it.
const PROGRAMS: [&str; 3] = ["hyphae", "hyphae-data", "hyphae-control"];

/// The setter of a path may not use it.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// A Hyphae node serves the path.
    #[error("{0} is served by a Hyphae node: a topic cannot lead there")]
    Node(PathBuf),
    /// Another user serves the path.
    #[error("{path} is served by user {owner}, and the path was set by user {uid}")]
    Server {
        /// Path.
        path: PathBuf,
        /// User that serves it.
        owner: u32,
        /// User that set it.
        uid: u32,
    },
    /// That user may not know whether the path is served.
    #[error(
        "{path} was set by user {uid}, who may not search a directory of the path (as its owner or as \
         one of all; groups do not count here)"
    )]
    Unseen {
        /// Path.
        path: PathBuf,
        /// User that set it.
        uid: u32,
    },
    /// The directory belongs to another user.
    #[error("{path} is in a directory of user {owner}, and was set by user {uid}")]
    Directory {
        /// Path.
        path: PathBuf,
        /// Owner of the directory.
        owner: u32,
        /// User that set it.
        uid: u32,
    },
    /// Outside of the directories for remote administrators.
    #[error(
        "{0} was set remotely and is not below a directory of admin.socket_dirs in this node's configuration"
    )]
    Outside(PathBuf),
    /// No server listens, or a system call failed.
    #[error("{path}: {source}")]
    System {
        /// Path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The socket cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Process of a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// The dataplane.
    Data,
    /// The control plane.
    Control,
}

impl Plane {
    /// Sets the name by which nodes identify the process, for the calling thread, which has to be the first one.
    /// Started as `/proc/self/exe` a process is called `exe`, and nobody can read the program of an undumpable one.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_name(self) -> io::Result<()> {
        let name = match self {
            Self::Data => c"hyphae-data",
            Self::Control => c"hyphae-control",
        };
        Ok(rustix::thread::set_name(name)?)
    }
}

/// The checks; clones share them.
#[derive(Clone)]
pub struct Gate {
    socket_dirs: Arc<[PathBuf]>,
    own_sockets: Arc<[PathBuf]>,
    is_node: fn(i32) -> bool,
}

impl Gate {
    /// For a node where remote administrators may name sockets below these directories, and that listens on these
    /// sockets itself.
    pub fn new(socket_dirs: &[PathBuf], own_sockets: &[PathBuf]) -> Self {
        Self {
            socket_dirs: socket_dirs.into(),
            own_sockets: own_sockets.into(),
            is_node,
        }
    }

    /// Treats no process as a node: servers of tests are in this process.
    #[cfg(test)]
    pub(super) fn of_test(socket_dirs: &[PathBuf]) -> Self {
        Self {
            socket_dirs: socket_dirs.into(),
            own_sockets: Arc::default(),
            is_node: |_| false,
        }
    }

    /// Refuses a path that its setter may not name, as far as that is known before its use. A server under the node's
    /// own authority gets no connection for the check: it would receive an empty request.
    ///
    /// # Errors
    /// As [`Self::connect`], except for a path without a server.
    pub async fn check(&self, path: &Path, set_by: Authority) -> Result<(), GateError> {
        if self.is_own(path) {
            return Err(GateError::Node(path.to_owned()));
        }
        if set_by == Authority::Node {
            return Ok(());
        }
        match self.connect(path, set_by).await {
            Ok(_) | Err(GateError::System { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether a path leads to a socket of this node.
    fn is_own(&self, path: &Path) -> bool {
        let file = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
        let found = file(path);
        found.is_some() && self.own_sockets.iter().any(|own| file(own) == found)
    }

    /// Connects to a server on the authority of the setter.
    ///
    /// # Errors
    /// When there is no server, or one beyond that authority.
    pub async fn connect(&self, path: &Path, set_by: Authority) -> Result<UnixStream, GateError> {
        let system = |source| GateError::System {
            path: path.to_owned(),
            source,
        };
        let stream = match set_by {
            Authority::Remote => through(self.below(path, OFlags::PATH)?).await,
            Authority::User(uid) => through(reach::socket(path, uid)?).await,
            Authority::Node => UnixStream::connect(path).await,
        };
        let stream = stream.map_err(system)?;
        // Process of the listener; 0 for one outside of the PID namespace.
        let server = stream.peer_cred().map_err(system)?;
        if server.pid().is_some_and(self.is_node) {
            return Err(GateError::Node(path.to_owned()));
        }
        match set_by {
            Authority::User(uid) if uid != server.uid() => Err(GateError::Server {
                path: path.to_owned(),
                owner: server.uid(),
                uid,
            }),
            Authority::Node | Authority::User(_) | Authority::Remote => Ok(stream),
        }
    }

    /// Binds a socket on the authority of the setter. A stale one is replaced in directories of that user only.
    ///
    /// # Errors
    /// When it cannot be created, or the authority does not permit it.
    pub fn bind(
        &self,
        path: &Path,
        set_by: Authority,
    ) -> Result<(Socket, std::os::unix::net::UnixListener), GateError> {
        let system = |source| GateError::System {
            path: path.to_owned(),
            source,
        };
        let name = path.file_name().and_then(|name| name.to_str());
        let (Some(name), Some(parent)) = (name, path.parent()) else {
            return Err(system(io::ErrorKind::InvalidInput.into()));
        };
        let directory = if set_by == Authority::Remote {
            let opened = self.below(parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
            Directory::from_descriptor(opened, parent)
        } else {
            Directory::open_unchecked(parent).map_err(system)?
        };
        let owner = directory.owner().map_err(system)?;
        let replace = match set_by {
            Authority::User(uid) if uid != owner => {
                let path = path.to_owned();
                return Err(GateError::Directory { path, owner, uid });
            }
            Authority::User(_) => true,
            Authority::Node | Authority::Remote => {
                owner == 0 || owner == rustix::process::geteuid().as_raw()
            }
        };
        Ok(Socket::bind(&directory, name, MODE, replace)?)
    }

    /// Opens a path below one of the directories, without symbolic links and `..`.
    fn below(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, GateError> {
        let mut last = None;
        for base in &*self.socket_dirs {
            let Ok(rest) = path.strip_prefix(base) else {
                continue;
            };
            let rest = if rest.as_os_str().is_empty() {
                Path::new(".")
            } else {
                rest
            };
            let base = Directory::open_unchecked(base).map_err(|source| GateError::System {
                path: path.to_owned(),
                source,
            })?;
            match beneath(base.as_fd(), rest, flags) {
                Ok(found) => return Ok(found),
                Err(error) => last = Some(error),
            }
        }
        Err(match last {
            // A link, or `..`.
            None | Some(Errno::LOOP | Errno::XDEV) => GateError::Outside(path.to_owned()),
            Some(error) => GateError::System {
                path: path.to_owned(),
                source: error.into(),
            },
        })
    }
}

/// Connects to the file that was found, whatever its path refers to by now.
async fn through(found: OwnedFd) -> io::Result<UnixStream> {
    let number = found.as_raw_fd();
    UnixStream::connect(format!("/proc/self/fd/{number}")).await
}

fn beneath(base: impl AsFd, rest: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    loop {
        // Renamed meanwhile: retry.
        match rustix::fs::openat2(&base, rest, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}

/// Whether a process belongs to this node or to another one on this host: by its program, or by its name where the
/// program is not readable.
fn is_node(pid: i32) -> bool {
    if u32::try_from(pid) == Ok(std::process::id()) {
        return true;
    }
    let program = |pid: &str| {
        let found = std::fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some((found.dev(), found.ino()))
    };
    let theirs = program(&pid.to_string());
    if theirs.is_some() && theirs == program("self") {
        return true;
    }
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| PROGRAMS.contains(&name.trim_end()))
}

mod reach;
#[cfg(test)]
mod tests;
