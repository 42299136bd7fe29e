//! Services: engines that exchange datagrams with other nodes over sessions.
//!
//! A service runs on the engine task, in turns with a bounded share of datagrams, so that a long message delays no
//! handshake. It starts no task and waits for nothing: slow work leaves as a [`Job`] and returns as a request.

pub(crate) mod bus;
pub(super) mod context;

use std::pin::Pin;

use hyphae_time::Nanos;
use hyphae_wire::{OverlayAddress, PublicKey};

/// State of a service after a turn, in the order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Turn {
    /// Nothing to do before the next input or deadline.
    Idle,
    /// Waits for room in the program ring.
    Blocked,
    /// The share is used up.
    More,
}

/// Work off the engine task, with the request that its output is.
pub(crate) type Job<R> = Pin<Box<dyn Future<Output = R> + Send>>;

/// Input of a service.
pub(crate) enum Input<'a, R> {
    /// Datagram of another node. The key is missing when its session has just ended.
    Datagram {
        key: Option<PublicKey>,
        source: OverlayAddress,
        bytes: &'a [u8],
    },
    /// Request of a client, or output of a job.
    Request(R),
    /// A session was established.
    SessionUp {
        address: OverlayAddress,
        session: Session,
    },
    /// A session has ended.
    SessionDown(OverlayAddress),
    /// The path MTU of a session changed, bytes.
    PathMtu { address: OverlayAddress, mtu: usize },
}

/// A session as services see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) key: PublicKey,
    /// Path MTU, bytes.
    pub(crate) mtu: usize,
}

/// Room for a datagram in the program ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingRoom {
    Free,
    Full,
    /// Not attached to a dataplane.
    Detached,
}

/// What the node offers to a service during its turn.
pub(crate) trait Context<R> {
    /// The session with a node; starts a handshake when there is none.
    fn session(&mut self, now: Nanos, address: OverlayAddress) -> Option<Session>;

    /// Whether a datagram can be sent now.
    fn room(&mut self) -> RingRoom;

    /// Sends a datagram.
    fn send(&mut self, service: hyphae_wire::Service, to: OverlayAddress, payload: &[u8]);

    /// Runs a job. Returns the output of one that completes at once; otherwise it returns as a request.
    fn start(&mut self, job: Job<R>) -> Option<R>;
}

/// An engine that the node runs.
pub(crate) trait NodeService {
    /// Requests of clients, and outputs of jobs.
    type Request;

    /// Takes an input.
    fn handle(&mut self, now: Nanos, input: Input<'_, Self::Request>);

    /// Handles deadlines that have passed.
    fn handle_timeout(&mut self, now: Nanos);

    /// The next deadline.
    fn poll_timeout(&self) -> Option<Nanos>;

    /// Does pending work and sends at most `share` datagrams.
    fn turn(&mut self, now: Nanos, share: usize, context: &mut impl Context<Self::Request>)
    -> Turn;
}
