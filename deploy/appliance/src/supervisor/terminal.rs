//! The two meanings of SIGHUP.
//!
//! From a service manager or an administrator it means "reload". When a terminal hangs up, the kernel sends it to the
//! processes of the terminal, and shells to their jobs, and it means "stop". The state of the controlling terminal
//! distinguishes the two.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// Time for the terminal to hang up after SIGHUP: a shell signals its jobs before it exits.
const HANGUP_GRACE: Duration = Duration::from_secs(1);

/// The controlling terminal, which the process must not outlive; none for services.
pub(super) struct Terminal(Option<File>);

impl Terminal {
    /// The controlling terminal; none for a service, and none where SIGHUP is ignored (`nohup`).
    pub(super) fn of_this_process() -> Self {
        if sighup_is_ignored() {
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

    /// Whether it has hung up, or does so within [`HANGUP_GRACE`].
    pub(super) fn is_hung_up(&self) -> bool {
        let Some(file) = &self.0 else {
            return false;
        };
        let Ok(grace) = Timespec::try_from(HANGUP_GRACE) else {
            return false;
        };
        // POLLHUP is always reported; no other event is requested.
        let mut at = [PollFd::new(file, PollFlags::empty())];
        poll(&mut at, Some(&grace)).is_ok_and(|ready| ready > 0)
    }
}

/// Reads the set of ignored signals, proc_pid_status(5); sigaction(2) has no safe wrapper that only reads.
fn sighup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    // Bit 0 is signal 1, SIGHUP.
    set.is_some_and(|set| set & 1 == 1)
}
