//! Speaks to the service manager for the whole node.
//!
//! To the planes the supervisor is the service manager: they tell it what they would tell systemd as units of
//! their own, from the same signs of progress. The node's watchdog is fed when both planes have fed theirs since the
//! last time, so one thread that hangs in either of them lets it starve, however well the supervisor is.
//!
//! What is heard counts only when the kernel says that a plane sent it: anybody may send to the socket.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

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

/// The service manager on one side, the planes on the other.
pub(super) struct Vigil {
    notifier: Notifier,
    ear: Option<Ear>,
    fed: [bool; PLANES],
    status: [String; PLANES],
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
        let ear = notifier.is_heard().then(Ear::new).transpose();
        Ok(Self {
            ear: ear.context("socket for what the planes tell")?,
            notifier,
            fed: Default::default(),
            status: Default::default(),
        })
    }

    /// What the planes have in their environment.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        let Some(ear) = &self.ear else {
            return Vec::new();
        };
        let [socket, watchdog, _] = hyphae_notify::VARIABLES;
        let mut variables = vec![(socket, format!("@{}", ear.name))];
        if let Some(within) = self.notifier.watchdog_within() {
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
                    self.fed[n] = true;
                } else if let Some(status) = line.strip_prefix("STATUS=") {
                    status.clone_into(&mut self.status[n]);
                }
            }
            self.pass_on();
        }
    }

    fn pass_on(&mut self) {
        if self.fed == [true; PLANES] {
            self.fed = Default::default();
            self.notifier.watchdog();
        }
        let said = self.status.iter().filter(|status| !status.is_empty());
        let said: Vec<&str> = said.map(String::as_str).collect();
        if said.len() == PLANES {
            self.notifier.status(&said.join("; "));
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
