//! Keeps the TUN device: a worker that finds its interface deleted rings, the main thread makes the interface again on
//! the same descriptors, and the workers go on. Address, MTU and routes are the control plane's, which sees the new
//! interface come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyphae_driver::Driver;
use hyphae_driver::tun::Interface;
use hyphae_shm::Doorbell;
use hyphae_time::{Nanos, RepairBackoff};

/// What the workers and the main thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Rung by a worker that has lost its interface.
    lost: Doorbell,
    /// How often the main thread has restored the interface.
    restored: AtomicU32,
}

/// The main thread's part.
pub(crate) struct Keeper {
    interface: Option<Interface>,
    shared: Arc<Shared>,
    workers: Vec<Arc<Doorbell>>,
    wanted: bool,
    /// The last error, logged once.
    complained: Option<String>,
    pace: RepairBackoff,
}

impl Keeper {
    pub(crate) fn new(
        interface: Option<Interface>,
        workers: Vec<Arc<Doorbell>>,
    ) -> rustix::io::Result<Self> {
        Ok(Self {
            interface,
            shared: Arc::new(Shared {
                lost: Doorbell::new()?,
                restored: AtomicU32::new(0),
            }),
            workers,
            wanted: false,
            complained: None,
            pace: RepairBackoff::default(),
        })
    }

    pub(crate) fn watch(&self) -> Watch {
        Watch {
            shared: Arc::clone(&self.shared),
            lost: 0,
            gone: false,
            resumed: 0,
        }
    }

    /// Readable when a worker has lost its interface.
    pub(crate) fn lost(&self) -> &Doorbell {
        &self.shared.lost
    }

    /// A worker has rung.
    pub(crate) fn note_lost(&mut self) {
        self.shared.lost.clear();
        self.wanted = true;
    }

    /// Restores the interface if that is due; returns how long until it is.
    pub(crate) fn poll(&mut self, now: Nanos) -> Option<Duration> {
        let interface = self.interface.as_ref().filter(|_| self.wanted)?;
        let at = self.pace.next(now);
        if now < at {
            return Some(at.since(now));
        }
        let name = interface.name();
        match interface.restore() {
            Ok(made) => {
                self.wanted = false;
                self.complained = None;
                if made {
                    self.pace.record(now);
                    tracing::warn!(device = name, "the TUN device was deleted; made it again");
                }
                self.shared.restored.fetch_add(1, Ordering::Release);
                self.workers.iter().for_each(|bell| bell.ring());
                None
            }
            Err(error) => {
                self.pace.record(now);
                let said = error.to_string();
                if self.complained.as_ref() != Some(&said) {
                    tracing::error!(
                        "the TUN device was deleted and could not be made again: {said}; trying on"
                    );
                    self.complained = Some(said);
                }
                Some(self.pace.next(now).since(now))
            }
        }
    }
}

/// A worker's part.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    /// Losses that the main thread has been told.
    lost: u64,
    gone: bool,
    /// `restored` when the queue was last resumed.
    resumed: u32,
}

impl Watch {
    /// Once per turn: reports a loss, and resumes after the interface was restored.
    pub(crate) fn poll(&mut self, driver: &mut impl Driver) {
        let lost = driver.stats().tun_lost;
        if lost != self.lost {
            (self.lost, self.gone) = (lost, true);
            self.shared.lost.ring();
        }
        if self.gone {
            let restored = self.shared.restored.load(Ordering::Acquire);
            if std::mem::replace(&mut self.resumed, restored) != restored {
                self.gone = false;
                driver.resume_tun();
            }
        }
    }
}
