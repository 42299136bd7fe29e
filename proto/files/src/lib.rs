//! A directory that is resolved once and held by its descriptor. Files and Unix sockets in it are single names
//! that are opened with `O_NOFOLLOW`, made with `O_EXCL` and checked on the descriptor: there is no path that
//! somebody could turn between a check and its use.
//!
//! Modes are exact because a plane sets its umask to zero before it has threads ([`exact_modes`]); nothing in a
//! plane makes a file in another way than through this package.
//!
//! Beside `proto/notify`, because both planes use it and it is about the host, not about the protocol.

#![forbid(unsafe_code)]

mod directory;
mod socket;

pub use directory::{Directory, DirectoryError};
pub use socket::{BindError, Socket};

/// Makes files and sockets get the mode that is named, no less. To be called once, before there are threads.
pub fn exact_modes() {
    rustix::process::umask(rustix::fs::Mode::empty());
}
