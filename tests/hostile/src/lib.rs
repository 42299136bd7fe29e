//! Hostile and light nodes for tests.
//!
//! ```text
//! Hostile ── link handshake with any claims ──▶ Link ── control, Babel, routed frames of any source
//!                                                 └── end-to-end handshake ──▶ Session ── bus packets
//! Victim:      `hyphae up` on loopback, two processes of their own
//! ```
//!
//! [`Hostile`] implements the protocol byte by byte, without an engine, so it can send anything. It blocks,
//! with a timeout on every wait. The tests state what they expect of the attacked node.

#![forbid(unsafe_code)]

mod chain;
mod claims;
mod flood;
mod link;
mod node;
mod seal;
mod session;
mod victim;

pub use chain::Secret;
pub use claims::{Claims, Handshake, Purpose, Secrets};
pub use flood::FirstMessages;
pub use link::{Link, Received, Routed};
pub use node::{FirstReply, Hostile};
pub use seal::LaneKeys;
pub use session::Session;
pub use victim::{Target, Victim};
