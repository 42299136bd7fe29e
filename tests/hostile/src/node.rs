//! The hostile node itself: a socket, a key, and first messages.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use hyphae_wire::handshake::{HandshakeStep, Message, encode_frame, set_cookie};
use hyphae_wire::{FrameKind, SecretKey, guard};

use crate::{Claims, Handshake, Link, Purpose, Secrets};

/// Timeout of an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Retransmission interval.
const REPEAT: Duration = Duration::from_millis(250);

/// Reply to a first message.
#[derive(Debug)]
pub enum FirstReply {
    /// The frame of a second message.
    Response(Vec<u8>),
    /// A cookie.
    Cookie(guard::Token),
    /// Timeout.
    Silence,
}

/// A hostile node.
pub struct Hostile {
    /// Its key pair.
    pub identity: SecretKey,
    /// Its only socket.
    pub socket: UdpSocket,
}

impl Hostile {
    /// A node with a new key; port 0 takes any.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn new(at: SocketAddr) -> anyhow::Result<Self> {
        Self::with_key(
            at,
            SecretKey::generate().map_err(|error| anyhow!("no randomness: {error}"))?,
        )
    }

    /// A node with a given key.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn with_key(at: SocketAddr, identity: SecretKey) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind(at).with_context(|| format!("UDP {at}"))?;
        Ok(Self { identity, socket })
    }

    /// Begins a handshake that may be left half open: its state and the frame to send.
    ///
    /// # Errors
    /// When the claims fit no message.
    pub fn first_message(
        &self,
        claims: &Claims,
        number: u32,
    ) -> anyhow::Result<(Handshake, Vec<u8>)> {
        let port = self.socket.local_addr()?.port();
        let mut handshake = Handshake::new(&self.identity, Purpose::Link, claims, port)?;
        let frame = encode_frame(HandshakeStep::Init, number, 0, &handshake.first()?);
        Ok((handshake, frame))
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send(&self, to: SocketAddr, frame: &[u8]) -> anyhow::Result<()> {
        self.socket.send_to(frame, to)?;
        Ok(())
    }

    /// The next datagram from anywhere, within a time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn receive(&self, within: Duration) -> anyhow::Result<Option<(Vec<u8>, SocketAddr)>> {
        let mut frame = vec![0; 65_536];
        self.socket
            .set_read_timeout(Some(within.max(Duration::from_millis(1))))?;
        match self.socket.recv_from(&mut frame) {
            Ok((len, from)) => {
                frame.truncate(len);
                Ok(Some((frame, from)))
            }
            // A timeout, or an ICMP error of an earlier datagram.
            Err(_) => Ok(None),
        }
    }

    /// The first reply to the handshake of this number, within a time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn answer(&self, number: u32, within: Duration) -> anyhow::Result<FirstReply> {
        let end = Instant::now() + within;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let Some((frame, _)) = self.receive(left)? else {
                continue;
            };
            match FrameKind::from_code(frame[0]) {
                Some(FrameKind::CookieReply) => {
                    if let Some((_, cookie)) = guard::parse(&frame).filter(|(n, _)| *n == number) {
                        return Ok(FirstReply::Cookie(cookie));
                    }
                }
                Some(FrameKind::HandshakeResponse) => {
                    let ours = Message::parse_frame(&frame)
                        .is_ok_and(|m| m.header.receiver.get() == number);
                    if ours {
                        return Ok(FirstReply::Response(frame));
                    }
                }
                _ => {}
            }
        }
        Ok(FirstReply::Silence)
    }

    /// Establishes a link, with a cookie if required.
    ///
    /// # Errors
    /// Without an answer in time, or with one that is no handshake.
    pub fn link(&self, to: SocketAddr, claims: &Claims) -> anyhow::Result<Link> {
        let number = 1;
        let (handshake, mut frame) = self.first_message(claims, number)?;
        let end = Instant::now() + TIMEOUT;
        let response = loop {
            self.send(to, &frame)?;
            match self.answer(number, REPEAT)? {
                FirstReply::Response(response) => break response,
                FirstReply::Cookie(cookie) => set_cookie(&mut frame, &cookie),
                FirstReply::Silence => {}
            }
            if Instant::now() > end {
                bail!("nothing at {to} answers a first message");
            }
        };
        let (finish, secrets) = Self::finish(handshake, &response, number)?;
        let mut link = Link::new(self.socket.try_clone()?, to, secrets);
        while Instant::now() < end {
            self.send(to, &finish)?;
            // The first frame of the other end confirms the link.
            if link.receive(REPEAT)?.is_some() {
                return Ok(link);
            }
        }
        bail!("{to} does not confirm the link")
    }

    /// Handles a second message; returns the frame of the third, unsent, and the link that it would establish.
    ///
    /// # Errors
    /// When the second message is not an answer to the first.
    pub fn finish(
        handshake: Handshake,
        response: &[u8],
        number: u32,
    ) -> anyhow::Result<(Vec<u8>, Secrets)> {
        let message = Message::parse_frame(response)?;
        let (third, secrets) = handshake.finish(message.noise)?;
        let receiver = message.header.sender.get();
        Ok((
            encode_frame(HandshakeStep::Finish, number, receiver, &third),
            secrets,
        ))
    }
}
