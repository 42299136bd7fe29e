//! Notifications of the node to the service manager.
//!
//! For the planes the supervisor is the service manager: they send it the notifications that they would send to
//! systemd from units of their own, based on the same progress checks. The node's watchdog is fed when both planes
//! have fed theirs since the last time, so one hung thread in either plane lets it expire. A plane that is down or
//! starting is excused: the supervisor restarts it, and a restart of the whole service would end the other plane.
//!
//! Any process may send to the socket. Messages count only when their credentials (`SCM_CREDENTIALS`) are those of a
//! plane.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use hyphae_notify::Notifier;
use nix::sys::socket::{
    self, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, sockopt,
};

/// Longest message, bytes; planes send less.
const MESSAGE_MAX: usize = 8192;

/// Number of planes; they are indexed in the order of the supervisor, the dataplane first.
pub(super) const PLANES: usize = 2;

/// Time limit for a restarted plane to become ready.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// Combines the notifications of the planes into those of the node.
pub(super) struct Watchdog {
    notifier: Notifier,
    socket: Option<NotifySocket>,
    planes: [PlaneState; PLANES],
    /// Last keep-alive of the node.
    fed_at: Instant,
}

/// Last notifications of a plane.
#[derive(Default)]
struct PlaneState {
    /// It has fed its watchdog since the last keep-alive of the node.
    fed: bool,
    ready: bool,
    /// It does not run, or for less than [`START_TIMEOUT`].
    starting: bool,
    status: String,
    /// Why it does not run.
    down_reason: Option<String>,
}

/// The socket that the planes send to.
struct NotifySocket {
    descriptor: OwnedFd,
    /// In the abstract namespace.
    name: String,
}

impl Watchdog {
    /// For the service manager of the environment, if any.
    pub(super) fn from_environment(now: Instant) -> anyhow::Result<Self> {
        Self::new(Notifier::from_environment(), now)
    }

    pub(super) fn new(notifier: Notifier, now: Instant) -> anyhow::Result<Self> {
        let socket = notifier.is_enabled().then(NotifySocket::new).transpose();
        Ok(Self {
            socket: socket.context("notification socket of the planes")?,
            notifier,
            planes: Default::default(),
            fed_at: now,
        })
    }

    /// Environment variables of the planes.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        let Some(socket) = &self.socket else {
            return Vec::new();
        };
        let [notify_socket, watchdog, _] = hyphae_notify::VARIABLES;
        let mut variables = vec![(notify_socket, format!("@{}", socket.name))];
        if let Some(timeout) = self.notifier.watchdog_timeout() {
            variables.push((watchdog, timeout.as_micros().to_string()));
        }
        variables
    }

    /// Readable when a plane has sent a notification.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| socket.descriptor.as_fd())
    }

    /// Reads and forwards notifications. `plane` maps a process number to the index of a plane.
    pub(super) fn receive(&mut self, now: Instant, plane: impl Fn(i32) -> Option<usize>) {
        while let Some((pid, text)) = self.socket.as_ref().and_then(NotifySocket::receive) {
            let Some(n) = plane(pid).filter(|n| *n < PLANES) else {
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
            self.forward(now);
        }
    }

    /// Updates a plane: why it does not run, if so, and how long it has been running.
    pub(super) fn update(
        &mut self,
        now: Instant,
        n: usize,
        down_reason: Option<String>,
        age: Duration,
    ) {
        let plane = &mut self.planes[n];
        if down_reason.is_some() {
            plane.ready = false;
            plane.fed = false;
        }
        plane.starting = down_reason.is_some() || age < START_TIMEOUT;
        plane.down_reason = down_reason;
        self.forward(now);
    }

    /// Resets a plane that was restarted.
    pub(super) fn restarted(&mut self, n: usize) {
        self.planes[n] = PlaneState {
            status: "starting".to_owned(),
            ..PlaneState::default()
        };
    }

    /// Time until [`Watchdog::update`] must be called again.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let excused = (0..PLANES).any(|n| self.is_excused(n));
        self.notifier.watchdog_interval().filter(|_| excused)
    }

    /// Whether a plane need not feed its watchdog now. The control plane cannot become ready while the dataplane
    /// starts; the dataplane does not depend on it.
    fn is_excused(&self, n: usize) -> bool {
        let starting = |n: usize| {
            let plane: &PlaneState = &self.planes[n];
            !plane.ready && plane.starting
        };
        starting(n) || (n > 0 && !self.planes[n].ready && starting(0))
    }

    fn forward(&mut self, now: Instant) {
        let all_fed = self.planes.iter().all(|plane| plane.fed);
        let fed = (0..PLANES).all(|n| self.planes[n].fed || self.is_excused(n));
        // Both planes set the pace; while one is excused, the interval does.
        let interval = self.notifier.watchdog_interval().unwrap_or_default();
        if all_fed || (fed && now - self.fed_at >= interval) {
            self.planes.iter_mut().for_each(|plane| plane.fed = false);
            self.fed_at = now;
            self.notifier.watchdog();
        }
        let status = self.planes.iter();
        let status = status.map(|plane| plane.down_reason.as_deref().unwrap_or(&plane.status));
        let status: Vec<&str> = status.filter(|status| !status.is_empty()).collect();
        if status.len() == PLANES {
            self.notifier.status(&status.join("; "));
        }
    }

    /// Reports that the node is ready.
    pub(super) fn ready(&mut self) {
        self.notifier.ready();
    }

    /// Reports that the node is stopping.
    pub(super) fn stopping(&mut self) {
        self.notifier.stopping();
    }
}

impl NotifySocket {
    fn new() -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let descriptor = socket::socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        socket::setsockopt(&descriptor, sockopt::PassCred, &true)?;
        // Autobind: the kernel picks a free abstract name, unix(7).
        socket::bind(descriptor.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let address: UnixAddr = socket::getsockname(descriptor.as_raw_fd())?;
        let name = String::from_utf8_lossy(address.as_abstract().unwrap_or_default()).into_owned();
        Ok(Self { descriptor, name })
    }

    /// The next message with its sender's process number; `None` when the queue is empty.
    fn receive(&self) -> Option<(i32, String)> {
        let mut buffer = [0; MESSAGE_MAX];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!(UnixCredentials);
        let flags = MsgFlags::empty();
        let message = socket::recvmsg::<UnixAddr>(
            self.descriptor.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            flags,
        )
        .ok()?;
        let mut pid = None;
        for control in message.cmsgs().ok()? {
            if let ControlMessageOwned::ScmCredentials(sender) = control {
                pid = Some(sender.pid());
            }
        }
        let len = message.bytes;
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        Some((pid.unwrap_or(0), text))
    }
}
