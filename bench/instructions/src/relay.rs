//! A relay with any number of peers, routes and flows.

use anyhow::ensure;
use hyphae_forward::{Engine, EngineConfig, Verdict};
use hyphae_shm::record::Program;
use hyphae_wire::frame::OVERHEAD;
use hyphae_wire::{Endpoint, Suite, WorkerId};

use crate::records::{self, Lane, endpoint, index, key, network};
use crate::{NOW, Source, Spread};

/// Sizes of a [`Relay`].
#[derive(Clone, Copy, Debug)]
pub struct Dimensions {
    /// Suite of all links.
    pub suite: Suite,
    /// Neighbours, each with a link; at most 16,000.
    pub peers: u32,
    /// Prefixes in the FIB, spread over the peers.
    pub routes: u64,
    /// Of them, destinations of packets.
    pub flows: u64,
    /// Packets per train, all from one neighbour.
    pub train: usize,
    /// Bytes of payload of a packet.
    pub payload: u16,
}

/// A train and its source.
#[derive(Clone, Debug)]
struct Train {
    from: Endpoint,
    bytes: Vec<u8>,
}

/// The engine of a relay and its neighbours.
pub struct Relay {
    engine: Engine,
    sources: Vec<Source>,
    dimensions: Dimensions,
    spread: Spread,
    trains: Vec<Train>,
    verdicts: Vec<Verdict>,
}

impl Relay {
    /// A relay with these neighbours.
    ///
    /// # Errors
    /// When the engine refuses a record.
    pub fn new(dimensions: Dimensions) -> anyhow::Result<Self> {
        ensure!(
            (1..=16_000).contains(&dimensions.peers)
                && (1..=dimensions.routes).contains(&dimensions.flows)
                && (1..=64).contains(&dimensions.train),
            "at least one peer, route, flow and packet; no more flows than routes"
        );
        let mut engine = Engine::new(EngineConfig {
            worker: WorkerId(0),
            workers: 1,
            has_tun: false,
        });
        engine.apply(NOW, &Program::LocalInstall(&records::local(key(0))))?;
        let mut sources = Vec::new();
        for peer in 0..dimensions.peers {
            engine.apply(
                NOW,
                &Program::PeerInstall(&records::peer(peer, key(peer + 1))),
            )?;
            let slot = u16::try_from(peer + 1)?;
            let mut opens = [0x11; 32];
            opens[..4].copy_from_slice(&peer.to_le_bytes());
            let lane = Lane {
                receive: index(slot),
                send: index(7),
                suite: dimensions.suite,
                opens,
                seals: [0x22; 32],
                created: NOW,
            };
            let link = lane.link(peer, endpoint(peer + 1));
            engine.apply(NOW, &Program::LinkInstall(&link))?;
            sources.push(Source::new(
                dimensions.suite,
                &opens,
                lane.receive,
                dimensions.payload,
            ));
        }
        for n in 0..dimensions.routes {
            let peer = u32::try_from(n % u64::from(dimensions.peers))?;
            let route = records::route(network(n), peer);
            engine.apply(NOW, &Program::FibReplace(&route))?;
        }
        Ok(Self {
            engine,
            sources,
            dimensions,
            spread: Spread(1),
            trains: Vec::new(),
            verdicts: Vec::with_capacity(64),
        })
    }

    /// Bytes of a frame.
    pub fn frame(&self) -> usize {
        usize::from(self.dimensions.payload) + OVERHEAD
    }

    /// Prepares trains of random neighbours on random flows.
    pub fn prepare(&mut self, trains: usize) {
        let (frame, dimensions) = (self.frame(), self.dimensions);
        let room = || Train {
            from: endpoint(0),
            bytes: vec![0; frame * dimensions.train],
        };
        self.trains.resize_with(trains, room);
        for train in &mut self.trains {
            let peer = self.spread.next_number() % u64::from(dimensions.peers);
            // Peers are below 2^14.
            let peer = u32::try_from(peer).unwrap_or(0);
            train.from = endpoint(peer + 1);
            let source = &mut self.sources[peer as usize];
            let spread = &mut self.spread;
            source.write_train(&mut train.bytes, frame, || {
                network(spread.next_number() % dimensions.flows)
            });
        }
    }

    /// Relays the prepared trains; returns the number of packets.
    #[inline(never)]
    pub fn pass(&mut self) -> u64 {
        let frame = usize::from(self.dimensions.payload) + OVERHEAD;
        let mut passed = 0;
        for train in &mut self.trains {
            self.verdicts.clear();
            let Train { from, bytes } = train;
            self.engine
                .receive(NOW, *from, bytes, frame, &mut self.verdicts);
            for verdict in &self.verdicts {
                passed += u64::from(matches!(verdict, Verdict::Transmit(_)));
            }
        }
        passed
    }
}
