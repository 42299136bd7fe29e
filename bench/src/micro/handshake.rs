//! Handshakes between engines, from the first message to keys on both sides, and first messages of unauthenticated
//! sources, which get a cookie.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use anyhow::ensure;
use clap::Args as ClapArgs;
use hyphae_instructions::{FirstMessages, NOW, records};
use hyphae_overlay::{Config, ConfiguredPeer, Event, Overlay, PeerConfig};
use hyphae_shm::record::{Program, Punt, PuntHandshake};
use hyphae_time::Nanos;

use hyphae_wire::{Endpoint, SecretKey, WorkerId};
use x25519_dalek::{PublicKey, StaticSecret};

use super::{Round, nanos, timed};
use crate::output::{Measured, show_measured};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Seconds per row.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// Handshakes of one round.
const PAIRS: u32 = 50;
/// Noise XX with fresh keys, both sides together: key agreements, and generated key pairs.
const AGREEMENTS: u32 = 6;
const KEYS: u32 = 2;
/// First messages of one round.
const MESSAGES: u64 = 2000;

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let time = Duration::from_secs_f64(args.seconds);
    let per_second = |nanos: f64| 1e9 / nanos;
    eprintln!("handshakes");
    let [own, bare] = nanos(time, [&mut pairs, &mut agreements])?;
    let row = Measured::new(
        "handshakes",
        "initiator and responder",
        per_second(own),
        "per second",
    );
    let row = row.against(per_second(bare)).note(format!(
        "baseline: {AGREEMENTS} agreements and {KEYS} new keys, {:.0} of {:.0} us",
        bare / 1e3,
        own / 1e3
    ));
    eprintln!("first messages without a cookie");
    let mut sources = FirstMessages::new()?;
    let mut send = |messages, every_ns, answered: &dyn Fn(u64) -> bool| {
        let (count, took) = timed(|| sources.send(messages, every_ns));
        ensure!(answered(count), "{count} of {messages} were answered");
        Ok((messages, took))
    };
    // One first message per second passes.
    let few = |count| count + 2 >= MESSAGES;
    let [cookies] = nanos(time, [&mut || send(MESSAGES, 20_000, &few)])?;
    // Exhausts the burst of the rate limit first.
    send(20_000, 0, &|_| true)?;
    let [drops] = nanos(
        time,
        [&mut || send(MESSAGES, 10, &|count| count < MESSAGES)],
    )?;
    let agreement = bare / f64::from(AGREEMENTS + KEYS);
    let messages = [
        ("answered with a cookie", cookies),
        ("over the limit", drops),
    ]
    .map(|(of, own)| {
        let row = Measured::new("first message without a cookie", of, own, "ns");
        row.against(agreement)
            .note("baseline: one X25519 operation")
    });
    let rows: Vec<Measured> = [row].into_iter().chain(messages).collect();
    show_measured("handshake", &rows, "bare X25519, one core", json)
}

/// An engine and its address.
struct Side {
    overlay: Overlay,
    at: Endpoint,
    links: u32,
}

impl Side {
    fn new(n: u32) -> anyhow::Result<Self> {
        let mut config = Config::new(SecretKey::generate()?, vec![9670]);
        config.peers_max = PAIRS as usize + 1;
        let mut seed = [0x5a; 32];
        seed[..4].copy_from_slice(&n.to_le_bytes());
        Ok(Self {
            overlay: Overlay::new(config, seed),
            at: records::endpoint(n),
            links: 0,
        })
    }

    /// Drains the engine; its frames go onto the wire.
    fn drain(&mut self, now: Nanos, wire: &mut VecDeque<(Endpoint, Endpoint, Vec<u8>)>) {
        loop {
            let mut idle = true;
            while let Some((worker, program)) = self.overlay.poll_program() {
                idle = false;
                // Other records need a worker that carries traffic.
                let program = program.program();
                if let Program::SnapshotRequest(generation) = program {
                    // New workers have no state to adopt.
                    let end = Punt::SnapshotEnd(generation);
                    self.overlay.handle_punt(now, worker, &end);
                } else if let Program::InjectRaw(record, frame) = program {
                    wire.push_back((self.at, record.addresses.remote, frame.to_vec()));
                } else if let Program::LinkInstall(_) = program {
                    self.links += 1;
                }
            }
            if let Some(event) = self.overlay.poll_event() {
                idle = false;
                if let Event::ResyncFib { .. } = event {
                    self.overlay.finish_resync(now);
                }
            }
            if idle {
                return;
            }
        }
    }
}

/// Nodes that connect to one node, one after the other.
fn pairs() -> Round {
    let mut wire = VecDeque::new();
    let mut server = Side::new(0)?;
    server.overlay.begin_attach(NOW, 1);
    server.drain(NOW, &mut wire);
    let clients: anyhow::Result<Vec<Side>> = (1..=PAIRS).map(Side::new).collect();
    let mut clients = clients?;
    let peer = PeerConfig {
        id: ConfiguredPeer(0),
        addresses: vec![server.at],
        key: None,
    };
    let ((), took) = timed(|| {
        for (n, client) in (1..).zip(&mut clients) {
            let now = NOW + Duration::from_millis(n);
            client.overlay.add_peer(now, peer.clone());
            client.overlay.begin_attach(now, 1);
            client.drain(now, &mut wire);
            while let Some((from, to, frame)) = wire.pop_front() {
                let record = PuntHandshake {
                    addresses: from.into(),
                };
                let side = if to == server.at {
                    &mut server
                } else {
                    &mut *client
                };
                let punt = Punt::Handshake(&record, &frame);
                side.overlay.handle_punt(now, WorkerId(0), &punt);
                side.drain(now, &mut wire);
            }
        }
    });
    let done = clients.iter().filter(|client| client.links > 0).count();
    ensure!(
        done == PAIRS as usize && server.links >= PAIRS,
        "every handshake ends with keys: {done}, {}",
        server.links
    );
    Ok((PAIRS.into(), took))
}

/// Cost of the key agreements alone.
fn agreements() -> Round {
    let secret = StaticSecret::from([7; 32]);
    let mut public = PublicKey::from(&secret);
    let ((), took) = timed(|| {
        for _ in 0..PAIRS * AGREEMENTS {
            public = PublicKey::from(secret.diffie_hellman(black_box(&public)).to_bytes());
        }
        for _ in 0..PAIRS * KEYS {
            black_box(PublicKey::from(black_box(&secret)));
        }
    });
    black_box(public);
    Ok((PAIRS.into(), took))
}
