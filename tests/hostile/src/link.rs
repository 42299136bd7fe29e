//! A link of a hostile node, with every message of a neighbour.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use hyphae_wire::babel::{Origin, RouterId, Serial, Tlv, Update, Writer};
use hyphae_wire::control::{self, CONTROL_HEADER_LEN, ControlKind};
use hyphae_wire::frame::{HOP_LIMIT_DEFAULT, SealedHeaders, handshake_trailer};
use hyphae_wire::{
    FrameKind, LinkHeader, OverlayAddress, PublicKey, RoutingHeader, SecretKey, Service,
    SessionHeader, Signature,
};

use crate::{Claims, LaneKeys, Secret, Secrets, Session};

/// A link with a node, as a neighbour of it.
pub struct Link {
    socket: UdpSocket,
    /// Destination of frames.
    pub to: SocketAddr,
    /// Key of the node.
    pub key: PublicKey,
    /// Its lanes.
    pub lanes: Vec<LaneKeys>,
    /// Secrets of its handshake.
    pub passed: Vec<Secret>,
    /// Whether probes are answered while waiting, as a live node does.
    pub answers: bool,
}

/// Routing fields of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Routed {
    /// Destination.
    pub destination: OverlayAddress,
    /// Source, possibly forged.
    pub source: OverlayAddress,
    /// Code of the service.
    pub service: u8,
    /// Hop limit.
    pub hop_limit: u8,
}

impl Routed {
    /// A frame of a service with the usual hop limit.
    pub fn new(source: OverlayAddress, destination: OverlayAddress, service: Service) -> Self {
        Self {
            destination,
            source,
            service: service.code(),
            hop_limit: HOP_LIMIT_DEFAULT,
        }
    }

    /// The headers of a frame around `len` bytes of payload.
    ///
    /// # Panics
    /// When that is more than a frame can state.
    pub fn headers(&self, len: usize) -> SealedHeaders {
        let Ok(len) = u16::try_from(len) else {
            panic!("a payload of {len} bytes")
        };
        SealedHeaders {
            routing: RoutingHeader {
                destination: self.destination,
                source: self.source,
                hop_limit: self.hop_limit,
                service: self.service,
                flow_hash: 0.into(),
                payload_len: len.into(),
                flags: 0.into(),
            },
            session: SessionHeader::default(),
        }
    }
}

/// A datagram received over a link.
#[derive(Debug)]
pub enum Received {
    /// A link-local frame: its payload.
    Local(Vec<u8>),
    /// A transit frame: headers, payload as it was carried, trailer.
    Transit(Box<SealedHeaders>, Vec<u8>, Vec<u8>),
    /// Anything else, handshakes and resets among them: the datagram.
    Raw(Vec<u8>),
}

impl Link {
    pub(crate) fn new(socket: UdpSocket, to: SocketAddr, secrets: Secrets) -> Self {
        Self {
            socket,
            to,
            key: secrets.key,
            lanes: secrets.lanes,
            passed: secrets.passed,
            answers: true,
        }
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send(&self, frame: &[u8]) -> anyhow::Result<()> {
        self.socket.send_to(frame, self.to)?;
        Ok(())
    }

    /// Sends a link-local payload on lane 0.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn local(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        let frame = self.lanes[0].link_local(payload);
        self.send(&frame)
    }

    /// Sends a control message with any body.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn control(&mut self, kind: ControlKind, body: &[u8]) -> anyhow::Result<()> {
        self.local(&[&control::message(kind), body].concat())
    }

    /// Sends a packet of the routing protocol.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn babel(&mut self, packet: &[u8]) -> anyhow::Result<()> {
        self.control(ControlKind::Routing, packet)
    }

    /// Sends a hello and an IHU, both valid for minutes: the neighbour accepts routes from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn greet(&mut self, seqno: u16) -> anyhow::Result<()> {
        let hello = Tlv::Hello {
            unicast: false,
            seqno,
            interval: 6000,
            transmit: None,
        };
        let ihu = Tlv::Ihu {
            rxcost: 96,
            interval: 6000,
            echo: None,
        };
        self.babel(&packet(&[hello, ihu])?)
    }

    /// Announces the prefix of a key, signed by it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn announce(&mut self, of: &SecretKey, serial: Serial) -> anyhow::Result<()> {
        let key = of.public_key();
        let (prefix, router_id) = (key.address().subnet(), RouterId::of(&key));
        let message = Origin::message(prefix, router_id, serial);
        let signature: Signature = of.sign(&message, &[7; 64]);
        let update = Tlv::Update(Update {
            prefix: Some(prefix),
            router_id: Some(router_id),
            interval: 60_000,
            seqno: serial.seqno(),
            metric: 0,
            origin: Some(Origin {
                key,
                serial,
                signature,
            }),
        });
        self.babel(&packet(&[update])?)
    }

    /// Sends a frame that is not sealed end to end (handshakes, reports, traces), from any source.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unsealed(&mut self, routed: &Routed, payload: &[u8]) -> anyhow::Result<()> {
        let headers = routed.headers(payload.len());
        let frame = self.lanes[0].transit(&headers, payload, &handshake_trailer(payload));
        self.send(&frame)
    }

    /// Sends a frame with headers, payload and trailer as they are.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn transit(
        &mut self,
        headers: &SealedHeaders,
        payload: &[u8],
        trailer: &[u8],
    ) -> anyhow::Result<()> {
        let frame = self.lanes[0].transit(headers, payload, trailer);
        self.send(&frame)
    }

    /// The next datagram of the node, within a time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn receive(&mut self, within: Duration) -> anyhow::Result<Option<Received>> {
        let end = Instant::now() + within;
        let mut room = vec![0; 65_536];
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let Ok((len, from)) = self.socket.recv_from(&mut room) else {
                continue;
            };
            if from != self.to {
                continue;
            }
            let frame = &room[..len];
            let Some((header, _)) = LinkHeader::split(frame) else {
                continue;
            };
            let index = header.receiver.get();
            let lane = self.lanes.iter().position(|lane| lane.receive.0 == index);
            let kind = FrameKind::from_code(header.kind);
            let received = match (kind, lane.map(|lane| &mut self.lanes[lane])) {
                (Some(FrameKind::LinkLocal), Some(lane)) => {
                    let Some(payload) = lane.open_link_local(frame) else {
                        continue;
                    };
                    if let (true, Some((ControlKind::Probe, body))) =
                        (self.answers, control::parse(&payload))
                    {
                        let reply = control::message(ControlKind::ProbeReply);
                        let body = &body[..body.len().min(control::PROBE_LEN - CONTROL_HEADER_LEN)];
                        let reply = lane.link_local(&[&reply, body].concat());
                        self.send(&reply)?;
                    }
                    Received::Local(payload)
                }
                (Some(FrameKind::Transit), Some(lane)) => {
                    let Some((headers, payload, trailer)) = lane.open_transit(frame) else {
                        continue;
                    };
                    Received::Transit(Box::new(headers), payload, trailer)
                }
                _ => Received::Raw(frame.to_vec()),
            };
            return Ok(Some(received));
        }
        Ok(None)
    }

    /// Waits for a datagram for which `wanted` returns a value.
    ///
    /// # Errors
    /// When none arrives in time.
    pub fn wait<T>(
        &mut self,
        within: Duration,
        mut wanted: impl FnMut(Received) -> Option<T>,
    ) -> anyhow::Result<T> {
        let end = Instant::now() + within;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if let Some(found) = self.receive(left)?.and_then(&mut wanted) {
                return Ok(found);
            }
        }
        bail!("it did not come within {within:?}")
    }

    /// Establishes an end-to-end session over this link, as the owner of a key. The key's prefix is announced first, so
    /// that the answer is routed back.
    ///
    /// # Errors
    /// Without an answer in time.
    pub fn session(
        &mut self,
        identity: &SecretKey,
        destination: OverlayAddress,
        claims: &Claims,
    ) -> anyhow::Result<Session> {
        Session::begin(self, identity, destination, claims)
    }
}

/// A packet of the routing protocol.
fn packet(tlvs: &[Tlv]) -> anyhow::Result<Vec<u8>> {
    let mut writer = Writer::new();
    for tlv in tlvs {
        ensure!(writer.push(tlv), "more than one packet");
    }
    Ok(writer.take())
}
