//! One connection: what is read goes to the workers, what its outbox holds is written.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use hyphae_shm::stats::Counter;
use hyphae_wire::frame::LinkHeader;
use hyphae_wire::{Endpoint, FrameKind, SessionIndex, WorkerId};
use tokio::time::{sleep_until, timeout_at};

use super::framing::{FRAME_MAX, Malformed, PREFIX_LEN, take_frames};
use super::outbox::Outbox;
use super::serve::Shared;
use super::socket::Socket;

/// Room for a read before the first frame: who has not shown one gets little memory.
const FIRST_BYTES: usize = 2 * 1024;
/// Room for a read afterwards.
const READ_BYTES: usize = PREFIX_LEN + FRAME_MAX;

/// How long a connection may do without what it should have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// One from outside, without its first frame.
    pub(crate) first_frame: Duration,
    /// Any, with a frame that is not whole.
    pub(crate) whole_frame: Duration,
    /// Without a session that has ever sent on it.
    pub(crate) unused: Duration,
    /// After a session has last sent on it: longer than between two probes.
    pub(crate) idle: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            first_frame: Duration::from_secs(5),
            whole_frame: Duration::from_secs(10),
            unused: Duration::from_secs(30),
            idle: Duration::from_secs(75),
        }
    }
}

/// Why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By the other end, the network, or because this process stops.
    Closed,
    Silent,
    Malformed,
    Idle,
}

impl End {
    /// What counts it, beside [`Counter::StreamEnded`].
    pub(crate) fn counter(self) -> Option<Counter> {
        match self {
            Self::Closed => None,
            Self::Silent => Some(Counter::StreamEndedSilent),
            Self::Malformed => Some(Counter::StreamEndedMalformed),
            Self::Idle => Some(Counter::StreamEndedIdle),
        }
    }
}

/// Serves a connection to its end.
pub(crate) async fn run<S: Socket>(
    socket: &S,
    endpoint: Endpoint,
    inbound: bool,
    outbox: &Outbox,
    shared: &Rc<Shared>,
) -> End {
    let opened = Instant::now();
    let end = tokio::select! {
        end = read(socket, endpoint, opened, inbound, shared) => end,
        end = write(socket, outbox) => end,
        end = watch(opened, outbox, shared.times) => end,
    };
    socket.close();
    end
}

async fn read<S: Socket>(
    socket: &S,
    endpoint: Endpoint,
    opened: Instant,
    inbound: bool,
    shared: &Rc<Shared>,
) -> End {
    let mut buffer = BytesMut::new();
    let mut deadline = inbound.then_some(opened + shared.times.first_frame);
    let mut room = FIRST_BYTES;
    loop {
        buffer.reserve(room.saturating_sub(buffer.len()).max(1));
        let reading = socket.read(std::mem::take(&mut buffer));
        let read = match deadline {
            Some(at) => timeout_at(at.into(), reading).await,
            None => Ok(reading.await),
        };
        let Ok((result, filled)) = read else {
            return End::Silent;
        };
        buffer = filled;
        if !result.is_ok_and(|read| read > 0) {
            return End::Closed;
        }
        let taken = shared.receive(|receive| {
            take_frames(&mut buffer, |frame| {
                receive(owner(frame), &endpoint, frame);
            })
        });
        match taken {
            Err(Malformed) => return End::Malformed,
            // The deadline of the frame that is still not whole stands.
            Ok(0) if deadline.is_some() => {}
            Ok(0) => deadline = Some(Instant::now() + shared.times.whole_frame),
            Ok(_) => {
                room = READ_BYTES;
                deadline = (!buffer.is_empty()).then(|| Instant::now() + shared.times.whole_frame);
            }
        }
        // A frame can be larger than the first read, as long as it goes on coming.
        if buffer.len() >= room {
            room = (room * 2).min(READ_BYTES);
        }
    }
}

async fn write<S: Socket>(socket: &S, outbox: &Outbox) -> End {
    let mut spare = BytesMut::new();
    while let Some(bytes) = outbox.take(spare).await {
        let (result, bytes) = socket.write(bytes).await;
        if result.is_err() {
            break;
        }
        spare = bytes;
    }
    End::Closed
}

/// Ends what no session uses. That one does is seen by the sealed frames that leave, because
/// nobody outside can make a worker send any.
async fn watch(opened: Instant, outbox: &Outbox, times: Times) -> End {
    loop {
        let deadline = match outbox.sealed_at() {
            Some(at) => at + times.idle,
            None => opened + times.unused,
        };
        if Instant::now() >= deadline {
            return End::Idle;
        }
        sleep_until(deadline.into()).await;
    }
}

/// The worker that a frame is for. What is not sealed names no index of ours and goes to the
/// first, which owns lane 0 of every link.
fn owner(frame: &[u8]) -> WorkerId {
    let sealed = |kind| matches!(kind, FrameKind::Transit | FrameKind::LinkLocal);
    match LinkHeader::split(frame) {
        Some((header, _)) if FrameKind::from_code(header.kind).is_some_and(sealed) => {
            SessionIndex(header.receiver.get()).worker()
        }
        _ => WorkerId(0),
    }
}
