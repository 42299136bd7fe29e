//! The link parts of a train of transit frames, all under one key.
//!
//! A frame's counter and associated data are in the frame itself, so a train is all that is needed:
//!
//! ```text
//! 0        16                            72         88              len-16     len
//! | link   | routing and session headers | link tag | payload       | e2e tag  |
//! | header |      56 bytes, sealed       |          | not touched   |          |
//!   AAD, counter at 8                                                 AAD
//! ```
//!
//! Which way is taken is decided when a key is made: AES-256-GCM with AES-NI and carry-less multiplication, four
//! frames at a time where these work on 512 bits; ChaCha20-Poly1305 for four frames at a time with AVX2; or frame by
//! frame.

#[cfg(target_arch = "x86_64")]
mod aes_gcm;
#[cfg(target_arch = "x86_64")]
mod chacha_poly;
#[cfg(target_arch = "x86_64")]
mod poly1305;

use hyphae_wire::Suite;
use hyphae_wire::frame::{
    LINK_HEADER_LEN, LINK_TAG_AT, OVERHEAD, PAYLOAD_AT, SEALED_HEADERS_AT, SEALED_HEADERS_LEN,
    TAG_LEN,
};

use crate::Aead;

/// Where the link header has its counter.
const COUNTER_AT: usize = 8;
/// Bytes of associated data: the link header and the end-to-end tag.
const AAD_LEN: usize = LINK_HEADER_LEN + TAG_LEN;

// What the code below is written for.
const _: () = assert!(
    SEALED_HEADERS_AT == 16 && SEALED_HEADERS_LEN == 56 && LINK_TAG_AT == 72 && PAYLOAD_AT == 88
);

/// One key of one direction of a link lane.
pub struct LinkAead {
    single: Aead,
    batch: Batch,
}

/// How trains are worked on.
enum Batch {
    /// Frame by frame.
    Single,
    #[cfg(target_arch = "x86_64")]
    Aes(Box<aes_gcm::Key>),
    #[cfg(target_arch = "x86_64")]
    ChaCha(chacha_poly::Key),
}

impl LinkAead {
    /// Expands a key.
    pub fn new(suite: Suite, key: &[u8; 32]) -> Self {
        Self {
            single: Aead::new(suite, key),
            batch: Batch::new(suite, key),
        }
    }

    /// A key that is used frame by frame and as on any processor: what the other is held against.
    pub fn one_by_one(suite: Suite, key: &[u8; 32]) -> Self {
        Self {
            single: Aead::general(suite, key),
            batch: Batch::Single,
        }
    }

    /// Reads a byte of every cache line that trains need, so that several keys are fetched at once.
    #[inline]
    pub fn warm(&self) -> u8 {
        match &self.batch {
            Batch::Single => 0,
            #[cfg(target_arch = "x86_64")]
            Batch::Aes(key) => key.warm(),
            // It lies in here.
            #[cfg(target_arch = "x86_64")]
            Batch::ChaCha(_) => 0,
        }
    }

    /// For frames of other kinds.
    pub fn single(&self) -> &Aead {
        &self.single
    }

    /// Seals the link parts of `frames`, each of `segment` bytes but the last, which may be shorter.
    /// Link header, with the counter, and end-to-end tag are in place; the link tag is written.
    ///
    /// # Panics
    /// When a frame is shorter than [`OVERHEAD`].
    pub fn seal(&self, frames: &mut [u8], segment: usize) {
        count(frames, segment);
        match &self.batch {
            Batch::Single => frames
                .chunks_mut(segment)
                .for_each(|frame| self.seal_one(frame)),
            #[cfg(target_arch = "x86_64")]
            Batch::Aes(key) => key.seal(frames, segment),
            #[cfg(target_arch = "x86_64")]
            Batch::ChaCha(key) => {
                for group in frames.chunks_mut(segment.saturating_mul(chacha_poly::FRAMES)) {
                    if group.len() > segment {
                        key.seal(group, segment);
                    } else {
                        self.seal_one(group);
                    }
                }
            }
        }
    }

    /// Opens the link parts of `frames`, likewise, and says of each whether it is authentic. What is
    /// not is not to be used.
    ///
    /// # Panics
    /// When a frame is shorter than [`OVERHEAD`], or `authentic` has no place for one.
    pub fn open(&self, frames: &mut [u8], segment: usize, authentic: &mut [bool]) {
        let authentic = &mut authentic[..count(frames, segment)];
        match &self.batch {
            Batch::Single => {
                for (frame, authentic) in frames.chunks_mut(segment).zip(authentic) {
                    *authentic = self.open_one(frame);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Batch::Aes(key) => key.open(frames, segment, authentic),
            #[cfg(target_arch = "x86_64")]
            Batch::ChaCha(key) => {
                let groups = frames.chunks_mut(segment.saturating_mul(chacha_poly::FRAMES));
                for (group, authentic) in groups.zip(authentic.chunks_mut(chacha_poly::FRAMES)) {
                    if group.len() > segment {
                        key.open(group, segment, authentic);
                    } else {
                        authentic[0] = self.open_one(group);
                    }
                }
            }
        }
    }

    fn seal_one(&self, frame: &mut [u8]) {
        let (counter, aad) = associated(frame);
        let sealed = &mut frame[SEALED_HEADERS_AT..LINK_TAG_AT];
        let tag = self.single.seal(counter, &aad, sealed);
        frame[LINK_TAG_AT..PAYLOAD_AT].copy_from_slice(&tag);
    }

    fn open_one(&self, frame: &mut [u8]) -> bool {
        let (counter, aad) = associated(frame);
        let sealed = &mut frame[SEALED_HEADERS_AT..PAYLOAD_AT];
        self.single.open(counter, &aad, sealed).is_ok()
    }
}

impl Batch {
    #[cfg(target_arch = "x86_64")]
    fn new(suite: Suite, key: &[u8; 32]) -> Self {
        let batch = match suite {
            Suite::Aes256Gcm => aes_gcm::Key::new(key).map(Self::Aes),
            Suite::ChaCha20Poly1305 => chacha_poly::Key::new(key).map(Self::ChaCha),
        };
        batch.unwrap_or(Self::Single)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn new(_: Suite, _: &[u8; 32]) -> Self {
        Self::Single
    }
}

/// How many frames there are, all of them long enough.
fn count(frames: &[u8], segment: usize) -> usize {
    let (whole, last) = (frames.len() / segment, frames.len() % segment);
    assert!(
        segment >= OVERHEAD && (last == 0 || last >= OVERHEAD),
        "transit frames"
    );
    whole + usize::from(last > 0)
}

/// Counter and associated data of a frame.
fn associated(frame: &[u8]) -> (u64, [u8; AAD_LEN]) {
    let mut aad = [0; AAD_LEN];
    aad[..LINK_HEADER_LEN].copy_from_slice(&frame[..LINK_HEADER_LEN]);
    aad[LINK_HEADER_LEN..].copy_from_slice(&frame[frame.len() - TAG_LEN..]);
    (counter_of(frame), aad)
}

fn counter_of(frame: &[u8]) -> u64 {
    u64::from_le_bytes(part(frame, COUNTER_AT))
}

/// Some bytes of a frame.
#[inline]
fn part<const LEN: usize>(frame: &[u8], at: usize) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes.copy_from_slice(&frame[at..at + LEN]);
    bytes
}
