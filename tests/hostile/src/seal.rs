//! Sealing and opening of frames, see docs/internals/frames.md.

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use hyphae_wire::SessionIndex;
use hyphae_wire::frame::{
    FrameKind, LINK_HEADER_LEN, LINK_TAG_AT, LinkHeader, PAYLOAD_AT, SEALED_HEADERS_AT,
    SealedHeaders, TAG_LEN, nonce,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::Secret;

/// Keys of one lane, and the counter of the sending one.
pub struct LaneKeys {
    /// Receiver index of the other side.
    pub send: SessionIndex,
    /// Receiver index of this side.
    pub receive: SessionIndex,
    /// Counter of the last frame sent; set it to repeat or skip.
    pub counter: u64,
    /// Keys for sending and receiving.
    pub keys: [Secret; 2],
    sealing: ChaCha20Poly1305,
    opening: ChaCha20Poly1305,
}

impl LaneKeys {
    pub(crate) fn new(
        send: SessionIndex,
        receive: SessionIndex,
        (sealing, opening): (Secret, Secret),
    ) -> Self {
        Self {
            send,
            receive,
            counter: 0,
            keys: [sealing, opening],
            sealing: ChaCha20Poly1305::new(&sealing.into()),
            opening: ChaCha20Poly1305::new(&opening.into()),
        }
    }

    fn seal(&self, counter: u64, associated: &[u8], bytes: &mut [u8]) -> [u8; TAG_LEN] {
        match self
            .sealing
            .encrypt_in_place_detached(&nonce(counter).into(), associated, bytes)
        {
            Ok(tag) => tag.into(),
            Err(error) => panic!("a frame is short enough to be sealed: {error}"),
        }
    }

    fn open(&self, counter: u64, associated: &[u8], bytes: &mut [u8], tag: &[u8]) -> bool {
        let tag: [u8; TAG_LEN] = match tag.try_into() {
            Ok(tag) => tag,
            Err(_) => return false,
        };
        self.opening
            .decrypt_in_place_detached(&nonce(counter).into(), associated, bytes, &tag.into())
            .is_ok()
    }

    /// A link-local frame.
    pub fn link_local(&mut self, payload: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let header = LinkHeader::new(FrameKind::LinkLocal, self.send.0, self.counter);
        let mut sealed = payload.to_vec();
        let tag = self.seal(self.counter, header.as_bytes(), &mut sealed);
        [header.as_bytes(), &sealed, &tag].concat()
    }

    /// A transit frame around a payload that is sealed, or not, already.
    pub fn transit(&mut self, headers: &SealedHeaders, payload: &[u8], trailer: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let header = LinkHeader::new(FrameKind::Transit, self.send.0, self.counter);
        let mut sealed = headers.as_bytes().to_vec();
        let associated = [header.as_bytes(), trailer].concat();
        let tag = self.seal(self.counter, &associated, &mut sealed);
        [header.as_bytes(), &sealed, &tag, payload, trailer].concat()
    }

    /// Seals a payload end to end; completes the session header.
    pub fn payload(&mut self, headers: &mut SealedHeaders, payload: &mut [u8]) -> [u8; TAG_LEN] {
        self.counter += 1;
        headers.session.receiver = self.send.0.into();
        headers.session.counter = self.counter.into();
        self.seal(self.counter, &headers.associated_data(), payload)
    }

    /// Payload of a link-local frame.
    pub fn open_link_local(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let (header, rest) = LinkHeader::split(frame)?;
        let (sealed, tag) = rest.split_at_checked(rest.len().checked_sub(TAG_LEN)?)?;
        let mut payload = sealed.to_vec();
        self.open(header.counter.get(), header.as_bytes(), &mut payload, tag)
            .then_some(payload)
    }

    /// Headers, payload and trailer of a transit frame.
    pub fn open_transit(&self, frame: &[u8]) -> Option<(SealedHeaders, Vec<u8>, Vec<u8>)> {
        let (header, _) = LinkHeader::split(frame)?;
        let end = frame
            .len()
            .checked_sub(TAG_LEN)
            .filter(|end| *end >= PAYLOAD_AT)?;
        let trailer = &frame[end..];
        let mut headers = frame[SEALED_HEADERS_AT..LINK_TAG_AT].to_vec();
        let associated = [&frame[..LINK_HEADER_LEN], trailer].concat();
        let counter = header.counter.get();
        let tag = &frame[LINK_TAG_AT..PAYLOAD_AT];
        if !self.open(counter, &associated, &mut headers, tag) {
            return None;
        }
        let headers = SealedHeaders::read_from_bytes(&headers).ok()?;
        Some((headers, frame[PAYLOAD_AT..end].to_vec(), trailer.to_vec()))
    }

    /// Payload of a frame that is sealed end to end.
    pub fn open_payload(
        &self,
        headers: &SealedHeaders,
        payload: &[u8],
        trailer: &[u8],
    ) -> Option<Vec<u8>> {
        let mut opened = payload.to_vec();
        let counter = headers.session.counter.get();
        self.open(counter, &headers.associated_data(), &mut opened, trailer)
            .then_some(opened)
    }
}
