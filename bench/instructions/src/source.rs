//! Frames as a neighbour of a relay writes them.

use hyphae_aead::LinkAead;
use hyphae_wire::frame::{LINK_TAG_AT, SEALED_HEADERS_AT, SealedHeaders};
use hyphae_wire::{FrameKind, LinkHeader, OverlayAddress, SessionIndex, Suite};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, IntoBytes};

/// Writes transit frames into buffers; their payload is opaque, as if sealed end to end.
pub struct Source {
    seal: LinkAead,
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
            seal: LinkAead::new(suite, key),
            index,
            headers,
            counter: 0,
        }
    }

    /// Writes a train of `segment` bytes a frame, each to the next address.
    pub fn write_train(
        &mut self,
        train: &mut [u8],
        segment: usize,
        mut to: impl FnMut() -> OverlayAddress,
    ) {
        for frame in train.chunks_exact_mut(segment) {
            self.headers.routing.destination = to();
            let header = LinkHeader::new(FrameKind::Transit, self.index.0, self.counter);
            frame[..SEALED_HEADERS_AT].copy_from_slice(header.as_bytes());
            frame[SEALED_HEADERS_AT..LINK_TAG_AT].copy_from_slice(self.headers.as_bytes());
            self.counter += 1;
        }
        self.seal.seal(train, segment);
    }
}
