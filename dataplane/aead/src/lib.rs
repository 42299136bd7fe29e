//! The AEADs of the packet path: keys expanded once, nonces from counters, everything in place.
//!
//! [`Aead`] seals and opens one packet of any length: with the assembly of aws-lc-rs, or, AES-256-GCM on
//! processors with vectors of 512 bits for it, with code that has everything ready before a packet comes.
//! [`LinkAead`] does so for the link parts of a whole train of transit frames. These are 56 bytes each, so short
//! that a general implementation spends most of its time on the way to the cipher; here they all
//! have one shape, and what a processor can do for several of them at once it does.
//!
//! `unsafe` stands here for one thing: calling a function that was compiled for instructions this
//! processor was found to have.

#[cfg(target_arch = "x86_64")]
mod gcm;
mod packet;
mod train;

pub use packet::{Aead, AuthError, aes_in_hardware};
pub use train::LinkAead;
