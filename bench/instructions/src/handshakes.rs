//! First handshake messages of unauthenticated sources without a cookie, at one worker.

use hyphae_forward::{Engine, EngineConfig, Verdict};
use hyphae_shm::record::{CookieSecret, Program};
use hyphae_time::Nanos;
use hyphae_wire::frame::MTU_DEFAULT;
use hyphae_wire::handshake::{HandshakeStep, Offer, encode_frame};

use hyphae_wire::{SuiteSet, WorkerId};
use zerocopy::FromZeros;
use zerocopy::little_endian::U32;

use crate::records::endpoint;
use crate::{NOW, Spread};

/// The engine of one worker.
pub struct FirstMessages {
    engine: Engine,
    /// The frame as received; a worker writes its answer into the frame.
    frame: Vec<u8>,
    spread: Spread,
    now: Nanos,
}

impl FirstMessages {
    /// A worker that requires a cookie in first messages.
    ///
    /// # Errors
    /// When the engine refuses a record.
    pub fn new() -> anyhow::Result<Self> {
        let mut engine = Engine::new(EngineConfig {
            worker: WorkerId(0),
            workers: 1,
            has_tun: false,
        });
        let mut secret = CookieSecret::new_zeroed();
        secret.current.0 = [7; 32];
        secret.inits_per_second = U32::new(1);
        secret.inits_burst = U32::new(1);
        engine.apply(NOW, &Program::CookieSecret(&secret))?;
        let offer = Offer {
            suites: SuiteSet::all(),
            workers: 1,
            mtu: MTU_DEFAULT,
            ports: vec![9670],
            lanes: Vec::new(),
            resets: Vec::new(),
            instance: 0,
        };
        let noise = [&[9; 32][..], &offer.encode()].concat();
        Ok(Self {
            engine,
            frame: encode_frame(HandshakeStep::Init, 1, 0, &noise),
            spread: Spread(1),
            now: NOW,
        })
    }

    /// Receives first messages of `count` sources, `every_ns` nanoseconds apart; returns how many were answered with a
    /// cookie. The worker drops those beyond its rate limit.
    pub fn send(&mut self, count: u64, every_ns: u64) -> u64 {
        let mut answered = 0;
        let mut frame = self.frame.clone();
        let mut verdicts = Vec::with_capacity(1);
        for _ in 0..count {
            self.now = Nanos(self.now.0 + every_ns);
            frame.copy_from_slice(&self.frame);
            let [a, b, c, d, ..] = self.spread.next_number().to_le_bytes();
            let from = endpoint(u32::from_le_bytes([a, b, c, d]));
            verdicts.clear();
            let len = frame.len();
            self.engine
                .receive(self.now, from, &mut frame, len, &mut verdicts);
            answered += u64::from(matches!(verdicts[..], [Verdict::Reply { .. }]));
        }
        answered
    }
}
