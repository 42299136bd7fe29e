//! Directories held by descriptor, and the files and Unix sockets in them.
//!
//! A path is resolved once. Entries are single names: opened with `O_NOFOLLOW`, created with `O_EXCL`, and checked on
//! the descriptor, so a path cannot change between check and use. Modes are exact because a plane clears its umask
//! before it starts threads ([`clear_umask`]). Planes create files only through this package.

#![forbid(unsafe_code)]

mod directory;
mod socket;

pub use directory::{Directory, DirectoryError};
pub use socket::{BindError, Socket};

/// Sets the umask of the process to zero, so that files and sockets get exactly the requested mode. Call once, before
/// the first thread starts.
pub fn clear_umask() {
    rustix::process::umask(rustix::fs::Mode::empty());
}
