//! An end-to-end session of a hostile node.

use std::time::{Duration, Instant};

use anyhow::bail;
use hyphae_wire::guard::SessionCookie;
use hyphae_wire::handshake::{
    HandshakeStep, Message, encode, encode_session_in, set_session_cookie,
};
use hyphae_wire::{NetworkId, OverlayAddress, SecretKey, Service};

use crate::{Claims, Handshake, LaneKeys, Link, Purpose, Received, Routed, Secret};

const TIMEOUT: Duration = Duration::from_secs(10);
const REPEAT: Duration = Duration::from_millis(300);

/// A session with a node, over a link with the same or another one.
pub struct Session {
    /// Source address of frames.
    pub source: OverlayAddress,
    /// The other end.
    pub destination: OverlayAddress,
    /// Lanes.
    pub lanes: Vec<LaneKeys>,
    /// Secrets of its handshake.
    pub passed: Vec<Secret>,
}

impl Session {
    /// A first message of an end-to-end handshake that may be left half open: its state and the
    /// payload of the routed frame ([`Link::unsealed`]).
    ///
    /// # Errors
    /// When the claims fit no message.
    pub fn first_message(
        identity: &SecretKey,
        claims: &Claims,
        number: u32,
    ) -> anyhow::Result<(Handshake, Vec<u8>)> {
        let mut handshake = Handshake::new(identity, Purpose::EndToEnd, claims, 0)?;
        let first = handshake.first()?;
        let message = encode_session_in(NetworkId::PUBLIC, HandshakeStep::Init, number, 0, &first);
        Ok((handshake, message))
    }

    pub(crate) fn begin(
        link: &mut Link,
        identity: &SecretKey,
        destination: OverlayAddress,
        claims: &Claims,
    ) -> anyhow::Result<Self> {
        let source = identity.public_key().address();
        let routed = Routed::new(source, destination, Service::Handshake);
        let number = u32::from_le_bytes(identity.public_key().0[..4].try_into()?) | 1;
        let (handshake, mut first) = Self::first_message(identity, claims, number)?;
        let end = Instant::now() + TIMEOUT;
        let response = loop {
            if Instant::now() > end {
                bail!("{destination} does not answer a first message");
            }
            link.unsealed(&routed, &first)?;
            let answer = link.wait(REPEAT, |received| {
                let Received::Transit(headers, payload, _) = received else {
                    return None;
                };
                let ours = headers.routing.service == Service::Handshake.code()
                    && Message::parse(&payload).is_ok_and(|m| {
                        (m.step, m.header.receiver.get()) == (HandshakeStep::Response, number)
                    });
                (ours || SessionCookie::parse(&payload).is_some()).then_some(payload)
            });
            if let Ok(answer) = answer {
                match SessionCookie::parse(&answer) {
                    Some(cookie) => set_session_cookie(&mut first, &cookie.token),
                    None => break answer,
                }
            }
        };
        let message = Message::parse(&response)?;
        let (third, secrets) = handshake.finish(message.noise)?;
        let finish = encode(
            HandshakeStep::Finish,
            number,
            message.header.sender.get(),
            &third,
        );
        let mut session = Self {
            source,
            destination,
            lanes: secrets.lanes,
            passed: secrets.passed,
        };
        while Instant::now() < end {
            link.unsealed(&routed, &finish)?;
            if session.receive(link, REPEAT)?.is_some() {
                return Ok(session);
            }
        }
        bail!("{destination} does not confirm the session")
    }

    /// Sends a payload of a service, sealed end to end.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send(
        &mut self,
        link: &mut Link,
        service: Service,
        payload: &[u8],
    ) -> anyhow::Result<()> {
        let mut headers =
            Routed::new(self.source, self.destination, service).headers(payload.len());
        let mut payload = payload.to_vec();
        let trailer = self.lanes[0].payload(&mut headers, &mut payload);
        link.transit(&headers, &payload, &trailer)
    }

    /// Sends a packet of the message bus.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bus(&mut self, link: &mut Link, packet: &[u8]) -> anyhow::Result<()> {
        self.send(link, Service::Message, packet)
    }

    /// The next payload of the other end, within a time: code of its service, and its bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn receive(
        &mut self,
        link: &mut Link,
        within: Duration,
    ) -> anyhow::Result<Option<(u8, Vec<u8>)>> {
        let end = Instant::now() + within;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let Some(Received::Transit(headers, payload, trailer)) = link.receive(left)? else {
                continue;
            };
            let index = headers.session.receiver.get();
            let lane = self.lanes.iter().find(|lane| lane.receive.0 == index);
            if let Some(payload) = lane.and_then(|l| l.open_payload(&headers, &payload, &trailer)) {
                return Ok(Some((headers.routing.service, payload)));
            }
        }
        Ok(None)
    }
}
