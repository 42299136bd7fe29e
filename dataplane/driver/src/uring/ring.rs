//! The ring itself: set-up, probe, submission, completion, sleep.
//!
//! One thread creates it and uses it (`SINGLE_ISSUER`, `DEFER_TASKRUN`): completions that are not
//! immediate are posted only while that thread is in `io_uring_enter` with `GETEVENTS`.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::{EnterFlags, IoUring, cqueue, squeue, types};

/// Submissions queued at once. More are submitted early, so this bounds nothing.
const ENTRIES: u32 = 256;
/// Completions that may wait: receives, and all that can be in flight. The kernel keeps more
/// elsewhere, at a price.
const COMPLETIONS: u32 = 4 * ENTRIES;

type SetFlag = fn(&mut Builder) -> &mut Builder;
type Builder = io_uring::Builder<squeue::Entry, cqueue::Entry>;

/// Flags of the ring, oldest first, each of use only with those before it. The last one is younger
/// than everything else that the driver uses (buffer rings 5.19, `recvmsg` multishot 6.0), so a
/// kernel that knows it has all of it.
const FLAGS: [(&str, &str, SetFlag); 4] = [
    ("SUBMIT_ALL", "5.18", Builder::setup_submit_all),
    ("COOP_TASKRUN", "5.19", Builder::setup_coop_taskrun),
    ("SINGLE_ISSUER", "6.0", Builder::setup_single_issuer),
    ("DEFER_TASKRUN", "6.1", Builder::setup_defer_taskrun),
];

/// Why io_uring cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The system's switch is off.
    #[error(
        "io_uring_setup: EPERM: kernel.io_uring_disabled is {level}, {}; set it to 0 with \
         `sysctl -w kernel.io_uring_disabled=0`, or use the epoll driver",
        if *.level == 1 {
            "so only CAP_SYS_ADMIN and the group kernel.io_uring_group may use io_uring"
        } else {
            "so nobody may use io_uring"
        }
    )]
    Disabled {
        /// Value of the switch.
        level: u32,
    },
    /// Something else forbids it.
    #[error(
        "{call}: EPERM although kernel.io_uring_disabled does not forbid it: a seccomp \
         filter does, as container runtimes set by default; allow io_uring_setup, io_uring_enter \
         and io_uring_register in its profile, or use the epoll driver"
    )]
    Forbidden {
        /// What failed.
        call: &'static str,
    },
    /// No such system call.
    #[error(
        "io_uring_setup: ENOSYS: this kernel ({release}) was built without io_uring, or a seccomp \
         filter hides it; use the epoll driver"
    )]
    Missing {
        /// Release of the kernel.
        release: String,
    },
    /// A part of io_uring is missing.
    #[error(
        "io_uring: this kernel ({release}) lacks {feature}, which came with Linux {since}; the \
         io_uring driver needs Linux 6.1; use the epoll driver or a newer kernel"
    )]
    TooOld {
        /// Release of the kernel.
        release: String,
        /// What is missing.
        feature: &'static str,
        /// First release that has it.
        since: &'static str,
    },
    /// Not enough memory for the ring.
    #[error(
        "{call}: ENOMEM: the limit of locked memory is {limit}, or the memory limit of the \
         container is too small; raise them (systemd: LimitMEMLOCK=, MemoryMax=)"
    )]
    Memory {
        /// What failed.
        call: &'static str,
        /// RLIMIT_MEMLOCK, in words.
        limit: String,
    },
    /// No descriptor left.
    #[error("{call}: EMFILE: the process has no file descriptor left; raise LimitNOFILE=")]
    Descriptors {
        /// What failed.
        call: &'static str,
    },
    /// Anything else that the kernel says.
    #[error("{call}: {source}")]
    Other {
        /// What failed.
        call: &'static str,
        /// How.
        source: io::Error,
    },
}

/// Whether the io_uring driver can work here: tries all three system calls on a ring like the
/// driver's.
///
/// # Errors
/// [`ProbeError`], worded for the operator.
pub fn probe() -> Result<(), ProbeError> {
    let mut ring = Ring::open()?;
    ring.register_files(&[-1])?;
    ring.look()
        .map_err(|error| ProbeError::of_call("io_uring_enter", error))
}

impl ProbeError {
    pub(super) fn of_call(call: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOMEM) => Self::Memory {
                call,
                limit: locked_memory_limit(),
            },
            Some(libc::EMFILE) => Self::Descriptors { call },
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden { call },
            _ => Self::Other { call, source },
        }
    }

    fn of_setup(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM) => match disabled_level() {
                Some(level) if level > 0 => Self::Disabled { level },
                _ => Self::Forbidden {
                    call: "io_uring_setup",
                },
            },
            Some(libc::ENOSYS) => Self::Missing { release: release() },
            Some(libc::EINVAL) => Self::of_flags(source),
            _ => Self::of_call("io_uring_setup", source),
        }
    }

    /// Finds the flag that made the kernel refuse all of them.
    fn of_flags(source: io::Error) -> Self {
        let mut builder = IoUring::builder();
        for (feature, since, set) in FLAGS {
            set(&mut builder);
            if builder.build(1).is_err() {
                return Self::TooOld {
                    release: release(),
                    feature,
                    since,
                };
            }
        }
        Self::Other {
            call: "io_uring_setup",
            source,
        }
    }
}

fn release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

fn disabled_level() -> Option<u32> {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn locked_memory_limit() -> String {
    match rustix::process::getrlimit(rustix::process::Resource::Memlock).current {
        Some(bytes) => format!("{} KiB", bytes / 1024),
        None => "unlimited".into(),
    }
}

/// Nothing could be queued: the kernel does not take submissions at the moment.
pub(super) struct Busy;

/// An io_uring instance.
pub(super) struct Ring {
    ring: IoUring,
    /// Operations queued that are carried out, and completed, while they are submitted.
    immediate: usize,
}

impl Ring {
    /// Sets a ring up and checks that everything the driver uses is there.
    pub(super) fn open() -> Result<Self, ProbeError> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(COMPLETIONS);
        for (_, _, set) in FLAGS {
            set(&mut builder);
        }
        // Spares the kernel an indirection per submission, from Linux 6.6 on.
        let built = match builder.clone().setup_no_sqarray().build(ENTRIES) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder.build(ENTRIES),
            result => result,
        };
        Ok(Self {
            ring: built.map_err(ProbeError::of_setup)?,
            immediate: 0,
        })
    }

    pub(super) fn register_files(&mut self, files: &[RawFd]) -> Result<(), ProbeError> {
        let registered = self.ring.submitter().register_files(files);
        registered.map_err(|error| ProbeError::of_call("io_uring_register (files)", error))
    }

    /// Registers `entries` entries at `address` as buffer ring `group`.
    ///
    /// # Safety
    /// `address` is the page-aligned start of as many entries, mapped until the ring is dropped or
    /// nothing that uses the group is in flight.
    pub(super) unsafe fn register_buffers(
        &mut self,
        address: u64,
        entries: u16,
        group: u16,
    ) -> Result<(), ProbeError> {
        // SAFETY: the caller's duty.
        let registered = unsafe {
            self.ring
                .submitter()
                .register_buf_ring_with_flags(address, entries, group, 0)
        };
        registered.map_err(|error| ProbeError::of_call("io_uring_register (buffer ring)", error))
    }

    /// Queues `entry`; submits what is queued if there is no room.
    ///
    /// # Safety
    /// What `entry` points to stays where it is and is not used otherwise until its completion has
    /// been taken with [`Self::next`] (a multishot's: the last one).
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<(), Busy> {
        for _ in 0..2 {
            // SAFETY: the caller's duty.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit().map_err(|_| Busy)?;
        }
        Err(Busy)
    }

    /// The same for an operation that never waits: [`Self::sleep`] does not wake for its completion.
    ///
    /// # Safety
    /// As [`Self::push`].
    pub(super) unsafe fn push_immediate(&mut self, entry: &squeue::Entry) -> Result<(), Busy> {
        // SAFETY: the caller's duty.
        unsafe { self.push(entry) }?;
        self.immediate += 1;
        Ok(())
    }

    /// The same for two operations that are linked: the second begins when the first has succeeded.
    ///
    /// # Safety
    /// As [`Self::push`], for both.
    pub(super) unsafe fn push_linked(&mut self, entries: &[squeue::Entry; 2]) -> Result<(), Busy> {
        for _ in 0..2 {
            // A chain ends where a submission does, so both or none.
            // SAFETY: the caller's duty.
            if unsafe { self.ring.submission().push_multiple(entries) }.is_ok() {
                return Ok(());
            }
            self.submit().map_err(|_| Busy)?;
        }
        Err(Busy)
    }

    /// Entries queued and not submitted.
    pub(super) fn queued(&mut self) -> usize {
        self.ring.submission().len()
    }

    /// Submits what is queued. Immediate operations complete; deferred work does not run.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if self.queued() == 0 {
            return Ok(());
        }
        self.enter(EnterFlags::empty())
    }

    /// Submits and runs deferred work, without waiting. The crate's `submit_and_wait(0)` would not
    /// set `GETEVENTS`, and without it deferred work never runs.
    pub(super) fn look(&mut self) -> io::Result<()> {
        self.enter(EnterFlags::GETEVENTS)
    }

    fn enter(&mut self, flags: EnterFlags) -> io::Result<()> {
        self.immediate = 0;
        let queued = u32::try_from(self.queued()).unwrap_or(u32::MAX);
        // SAFETY: no argument structure is passed, `queued` entries are in the queue, and what
        // they point to was promised to stay by whoever called `push`.
        let result = unsafe {
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(queued, 0, flags.bits(), None)
        };
        tolerate(result)
    }

    /// Submits what is queued and sleeps until a completion is there, other than of operations that are
    /// carried out meanwhile, or `timeout` has passed.
    pub(super) fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let want = 1 + std::mem::take(&mut self.immediate);
        let submitter = self.ring.submitter();
        tolerate(match timeout {
            Some(timeout) => {
                let timeout = types::Timespec::from(timeout);
                submitter.submit_with_args(want, &types::SubmitArgs::new().timespec(&timeout))
            }
            None => submitter.submit_and_wait(want),
        })
    }

    /// The next completion.
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    /// Asks for the end of every operation in flight. Their completions follow.
    pub(super) fn cancel_all(&mut self) {
        // Failure leaves operations in flight, which the caller counts anyway.
        let _ = self
            .ring
            .submitter()
            .register_sync_cancel(Some(types::Timespec::new()), types::CancelBuilder::any());
    }

    /// Lets go of registered files at once: the kernel tears a ring down later than `close`, and a
    /// TUN device that is held that long cannot be opened again at once.
    pub(super) fn unregister(&mut self) {
        let _ = self.ring.submitter().unregister_files();
    }
}

/// Results of entering that are no failures: signals, time out, and "take completions first".
fn tolerate(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_kernel_name_their_cause() {
        let setup = |errno| ProbeError::of_setup(io::Error::from_raw_os_error(errno)).to_string();
        assert!(setup(libc::ENOSYS).contains("ENOSYS"));
        assert!(setup(libc::ENOMEM).contains("locked memory"));
        assert!(setup(libc::EMFILE).contains("LimitNOFILE"));
        let eperm = setup(libc::EPERM);
        assert!(eperm.contains("seccomp") || eperm.contains("kernel.io_uring_disabled is"));
        let old = ProbeError::TooOld {
            release: "5.15".into(),
            feature: "X",
            since: "6.0",
        };
        assert!(
            old.to_string()
                .contains("5.15) lacks X, which came with Linux 6.0")
        );
        let disabled = ProbeError::Disabled { level: 2 }.to_string();
        assert!(disabled.starts_with("io_uring_setup: EPERM: kernel.io_uring_disabled is 2"));
    }
}
