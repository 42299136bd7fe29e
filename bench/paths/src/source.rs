//! Frames as a neighbour of a relay writes them.

use hyphae_forward::Aead;
use hyphae_wire::frame::{LINK_TAG_AT, PAYLOAD_AT, SEALED_HEADERS_AT, SealedHeaders, TAG_LEN};
use hyphae_wire::{FrameKind, LinkHeader, OverlayAddress, SessionIndex, Suite};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, IntoBytes};

/// Writes transit frames into buffers; whatever is in their payload goes as sealed end to end.
pub struct Source {
    seal: Aead,
    index: SessionIndex,
    headers: SealedHeaders,
    counter: u64,
}

impl Source {
    /// A neighbour that seals with this key for the relay's lane of this index.
    pub fn new(suite: Suite, key: &[u8; 32], index: SessionIndex, payload: u16) -> Self {
        let mut headers = SealedHeaders::new_zeroed();
        headers.routing.hop_limit = 64;
        headers.routing.payload_len = U16::new(payload);
        headers.session.receiver = U32::new(1);
        Self {
            seal: Aead::new(suite, key),
            index,
            headers,
            counter: 0,
        }
    }

    /// Writes the next frame, to an address; `frame` is as long as payload and overhead.
    pub fn write(&mut self, to: OverlayAddress, frame: &mut [u8]) {
        self.headers.routing.destination = to;
        let header = LinkHeader::new(FrameKind::Transit, self.index.0, self.counter);
        let mut aad = [0; 2 * TAG_LEN];
        aad[..TAG_LEN].copy_from_slice(header.as_bytes());
        aad[TAG_LEN..].copy_from_slice(&frame[frame.len() - TAG_LEN..]);
        frame[..SEALED_HEADERS_AT].copy_from_slice(header.as_bytes());
        frame[SEALED_HEADERS_AT..LINK_TAG_AT].copy_from_slice(self.headers.as_bytes());
        let sealed = &mut frame[SEALED_HEADERS_AT..LINK_TAG_AT];
        let tag = self.seal.seal(self.counter, &aad, sealed);
        frame[LINK_TAG_AT..PAYLOAD_AT].copy_from_slice(&tag);
        self.counter += 1;
    }
}
