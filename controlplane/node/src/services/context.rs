//! The node as services use it: sessions of the overlay, the program ring, and tasks for jobs.

use futures_util::FutureExt;
use hyphae_overlay::Overlay;
use hyphae_shm::record::{InjectRouted, Program};
use hyphae_time::Nanos;
use hyphae_wire::{OverlayAddress, WorkerId};
use tokio::sync::mpsc;

use super::{Context, Job, RingRoom, Session};
use crate::attachment::{self, Attachment};

/// Datagrams per flush of the ring: as many of the usual size as one train carries.
const TRAIN: usize = 45;
/// The worker that sends datagrams of services: it has lane 0 of every session, which is activated first.
const WORKER: WorkerId = WorkerId(0);

/// The node during the turn of a service.
pub(crate) struct NodeContext<'a, R> {
    pub(crate) overlay: &'a mut Overlay,
    pub(crate) attachment: &'a mut Option<Attachment>,
    /// Takes the outputs of jobs.
    pub(crate) requests: &'a mpsc::Sender<R>,
    /// Datagrams sent in this turn.
    pub(crate) sent: usize,
}

impl<R: Send + 'static> Context<R> for NodeContext<'_, R> {
    fn session(&mut self, now: Nanos, address: OverlayAddress) -> Option<Session> {
        let Some(key) = self.overlay.session_key(address) else {
            self.overlay.want_session(now, address);
            return None;
        };
        let mtu = self.overlay.path_mtu(address).into();
        Some(Session { key, mtu })
    }

    fn room(&mut self) -> RingRoom {
        let Some(attachment) = &mut self.attachment else {
            return RingRoom::Detached;
        };
        // A worker sends what it finds at one wakeup as one train.
        if self.sent.is_multiple_of(TRAIN) {
            attachment.flush();
        }
        if attachment.has_room(WORKER) {
            RingRoom::Free
        } else {
            RingRoom::Full
        }
    }

    fn send(&mut self, service: hyphae_wire::Service, to: OverlayAddress, payload: &[u8]) {
        let Some(attachment) = &mut self.attachment else {
            return;
        };
        self.sent += 1;
        let record = InjectRouted {
            destination: to,
            service: service.code(),
            reserved: [0; 3],
            receive_index: 0.into(),
        };
        let program = Program::InjectRouted(&record, payload);
        if !attachment.push_through(WORKER, &program) {
            attachment::abandon(self.attachment);
        }
    }

    fn start(&mut self, mut job: Job<R>) -> Option<R> {
        if let Some(output) = (&mut job).now_or_never() {
            return Some(output);
        }
        let requests = self.requests.clone();
        tokio::spawn(async move {
            // The engine task may be ending.
            let _ = requests.send(job.await).await;
        });
        None
    }
}
