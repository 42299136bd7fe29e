//! Speaks to the service manager for the whole node.
//!
//! To the planes the supervisor is the service manager: they tell it what they would tell systemd as units of
//! their own, from the same signs of progress. The node's watchdog is fed when both planes have fed theirs since the
//! last time, so one thread that hangs in either of them lets it starve, however well the supervisor is. A plane
//! that is down, or has a moment to start, is the supervisor's to restart: it does not count, because a restart of
//! the whole service would take the other plane down with it.
//!
//! What is heard counts only when the kernel says that a plane sent it: anybody may send to the socket.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use hyphae_notify::Notifier;
use nix::sys::socket::{
    self, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, sockopt,
};

/// Bytes of one message; planes keep theirs shorter.
const MESSAGE_MAX: usize = 8192;

/// The planes, by their place in the supervisor.
pub(super) const PLANES: usize = 2;

/// How long a plane that was started again may take until it works.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// The service manager on one side, the planes on the other.
pub(super) struct Vigil {
    notifier: Notifier,
    ear: Option<Ear>,
    planes: [Heard; PLANES],
    /// When the node's watchdog was fed.
    fed_at: Instant,
}

/// What a plane has told, the dataplane first.
#[derive(Default)]
struct Heard {
    /// It has fed its watchdog since the node's was fed.
    fed: bool,
    /// It has said that it works.
    ready: bool,
    /// It does not run, or was started only now.
    starts: bool,
    status: String,
    /// Why it does not run.
    absence: Option<String>,
}

/// Where the planes speak to.
struct Ear {
    socket: OwnedFd,
    name: String,
}

impl Vigil {
    /// Of the service manager that the environment names, if any.
    pub(super) fn from_environment() -> anyhow::Result<Self> {
        Self::new(Notifier::from_environment())
    }

    fn new(notifier: Notifier) -> anyhow::Result<Self> {
        let ear = notifier.is_enabled().then(Ear::new).transpose();
        Ok(Self {
            ear: ear.context("socket for what the planes tell")?,
            notifier,
            planes: Default::default(),
            fed_at: Instant::now(),
        })
    }

    /// What the planes have in their environment.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        let Some(ear) = &self.ear else {
            return Vec::new();
        };
        let [socket, watchdog, _] = hyphae_notify::VARIABLES;
        let mut variables = vec![(socket, format!("@{}", ear.name))];
        if let Some(within) = self.notifier.watchdog_timeout() {
            variables.push((watchdog, within.as_micros().to_string()));
        }
        variables
    }

    /// Readable when a plane has said something.
    pub(super) fn ear(&self) -> Option<BorrowedFd<'_>> {
        self.ear.as_ref().map(|ear| ear.socket.as_fd())
    }

    /// Takes what was said and passes it on. `plane` knows which one has a process number.
    pub(super) fn listen(&mut self, plane: impl Fn(i32) -> Option<usize>) {
        while let Some((from, text)) = self.ear.as_ref().and_then(Ear::hear) {
            let Some(n) = plane(from).filter(|n| *n < PLANES) else {
                continue;
            };
            for line in text.lines() {
                if line == "WATCHDOG=1" {
                    self.planes[n].fed = true;
                } else if line == "READY=1" {
                    self.planes[n].ready = true;
                } else if let Some(status) = line.strip_prefix("STATUS=") {
                    status.clone_into(&mut self.planes[n].status);
                }
            }
            self.pass_on();
        }
    }

    /// Takes note of a plane: why it does not run, if so, and how long it has been running.
    pub(super) fn note(&mut self, n: usize, absence: Option<String>, age: Duration) {
        let plane = &mut self.planes[n];
        if absence.is_some() {
            plane.ready = false;
            plane.fed = false;
        }
        plane.starts = absence.is_some() || age < START_TIMEOUT;
        plane.absence = absence;
        self.pass_on();
    }

    /// A plane runs again; what its predecessor has told is void.
    pub(super) fn restarted(&mut self, n: usize) {
        self.planes[n] = Heard {
            status: "starting".to_owned(),
            ..Heard::default()
        };
    }

    /// When to call [`Vigil::note`] again at the latest.
    pub(super) fn wait(&self) -> Option<Duration> {
        let excused = (0..PLANES).any(|n| self.is_excused(n));
        self.notifier.watchdog_interval().filter(|_| excused)
    }

    /// Whether a plane cannot be expected to feed its watchdog now. The control plane does not while it has no
    /// dataplane to attach to; the dataplane needs nobody.
    fn is_excused(&self, n: usize) -> bool {
        let starts = |n: usize| {
            let plane: &Heard = &self.planes[n];
            !plane.ready && plane.starts
        };
        starts(n) || (n > 0 && !self.planes[n].ready && starts(0))
    }

    fn pass_on(&mut self) {
        let all_fed = self.planes.iter().all(|plane| plane.fed);
        let fed = (0..PLANES).all(|n| self.planes[n].fed || self.is_excused(n));
        // A plane sets the pace; without one, the clock.
        let every = self.notifier.watchdog_interval().unwrap_or_default();
        if all_fed || (fed && self.fed_at.elapsed() >= every) {
            self.planes.iter_mut().for_each(|plane| plane.fed = false);
            self.fed_at = Instant::now();
            self.notifier.watchdog();
        }
        let told = self.planes.iter();
        let told = told.map(|plane| plane.absence.as_deref().unwrap_or(&plane.status));
        let told: Vec<&str> = told.filter(|told| !told.is_empty()).collect();
        if told.len() == PLANES {
            self.notifier.status(&told.join("; "));
        }
    }

    /// The node is up.
    pub(super) fn ready(&mut self) {
        self.notifier.ready();
    }

    /// The node begins to stop.
    pub(super) fn stopping(&mut self) {
        self.notifier.stopping();
    }
}

impl Ear {
    fn new() -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        socket::setsockopt(&socket, sockopt::PassCred, &true)?;
        // The kernel finds a name in the abstract namespace that nobody has.
        socket::bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let address: UnixAddr = socket::getsockname(socket.as_raw_fd())?;
        let name = String::from_utf8_lossy(address.as_abstract().unwrap_or_default()).into_owned();
        Ok(Self { socket, name })
    }

    /// The next message with its sender's process number; `None` when there is none.
    fn hear(&self) -> Option<(i32, String)> {
        let mut buffer = [0; MESSAGE_MAX];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!(UnixCredentials);
        let flags = MsgFlags::empty();
        let message = socket::recvmsg::<UnixAddr>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            flags,
        )
        .ok()?;
        let mut from = None;
        for control in message.cmsgs().ok()? {
            if let ControlMessageOwned::ScmCredentials(sender) = control {
                from = Some(sender.pid());
            }
        }
        let len = message.bytes;
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        Some((from.unwrap_or(0), text))
    }
}
