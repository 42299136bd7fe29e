//! Light nodes on loopback, driven by one thread.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hyphae_test_light::{Node, Scratch, Spec};
use hyphae_time::{Nanos, Timers};

use hyphae_wire::{OverlayAddress, PublicKey};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use hyphae_time::monotonic;

/// Events per epoll_wait.
const EVENTS: usize = 256;

/// Light nodes and their epoll instance.
pub(super) struct Swarm {
    pub(super) nodes: Vec<Node>,
    epoll: OwnedFd,
    timers: Timers<usize>,
    pub(super) scratch: Scratch,
}

impl Swarm {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            nodes: Vec::new(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            timers: Timers::new(),
            scratch: Scratch::default(),
        })
    }

    /// Adds a node, which starts to connect; returns its number.
    pub(super) fn add(&mut self, spec: &Spec) -> anyhow::Result<usize> {
        let (number, now) = (self.nodes.len(), monotonic());
        let mut node = Node::new(now, spec)?;
        let name = epoll::EventData::new_u64(u64::try_from(number)?);
        epoll::add(&self.epoll, &node.socket, name, epoll::EventFlags::IN)?;
        node.drain(now, &mut self.scratch);
        self.timers.set(number, node.poll_timeout());
        self.nodes.push(node);
        Ok(number)
    }

    /// Handles pending events, else waits for one, at most until `until`.
    pub(super) fn turn(&mut self, until: Nanos) -> anyhow::Result<()> {
        let now = monotonic();
        let next = self.timers.next().unwrap_or(Nanos::NEVER).min(until);
        let wait = next.since(now).min(Duration::from_secs(3600));
        let mut room = [MaybeUninit::uninit(); EVENTS];
        let events = match epoll::wait(&self.epoll, &mut room, Some(&Timespec::try_from(wait)?)) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => &mut [],
            Err(error) => return Err(error.into()),
        };
        for event in events {
            let number = usize::try_from(event.data.u64())?;
            self.nodes[number].receive(monotonic(), &mut self.scratch);
            self.timers.set(number, self.nodes[number].poll_timeout());
        }
        let now = monotonic();
        for number in self.timers.take_due(now) {
            self.nodes[number].handle_timeout(now, &mut self.scratch);
            self.timers.set(number, self.nodes[number].poll_timeout());
        }
        Ok(())
    }

    /// Makes a node request an echo.
    pub(super) fn ping(&mut self, now: Nanos, number: usize, address: OverlayAddress) {
        self.nodes[number].ping(now, address, &mut self.scratch);
        self.timers.set(number, self.nodes[number].poll_timeout());
    }

    /// Runs until `until`.
    pub(super) fn run_until(&mut self, until: Nanos) -> anyhow::Result<()> {
        while monotonic() < until {
            self.turn(until)?;
        }
        Ok(())
    }

    /// Number of nodes with a link to a node.
    pub(super) fn up(&self, key: PublicKey) -> usize {
        self.nodes.iter().filter(|node| node.is_up(key)).count()
    }
}
