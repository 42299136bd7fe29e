//! What SIGHUP means to this process.
//!
//! A service manager and an administrator mean "read the configuration again". A terminal that goes away means
//! "end": the kernel tells its processes so, and shells tell their jobs. Both are told apart by whether the terminal
//! that the node was started on is still there.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// A shell that ends tells its jobs before its terminal goes away.
const FAREWELL: Duration = Duration::from_secs(1);

/// The terminal that this process belongs to and must not outlive, if there is one.
pub(super) struct Terminal(Option<File>);

impl Terminal {
    /// The controlling terminal; none for a service, and for who was started by `nohup`.
    pub(super) fn of_this_process() -> Self {
        let signals = super::status_bits("SigIgn:").unwrap_or(0);
        // Bit 0 is signal 1.
        if signals & 1 == 1 {
            return Self(None);
        }
        let flags = OFlags::NOCTTY | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or(0);
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open("/dev/tty");
        Self(file.ok())
    }

    /// Whether it is gone, or goes within a moment.
    pub(super) fn is_gone(&self) -> bool {
        let Some(file) = &self.0 else {
            return false;
        };
        let Ok(moment) = Timespec::try_from(FAREWELL) else {
            return false;
        };
        // A hang-up is reported without being asked for; nothing else is wanted.
        let mut at = [PollFd::new(file, PollFlags::empty())];
        poll(&mut at, Some(&moment)).is_ok_and(|ready| ready > 0)
    }
}
