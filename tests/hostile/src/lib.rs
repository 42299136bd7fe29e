//! A node that does as it likes.
//!
//! ```text
//! Hostile ── link handshake with any claims ──▶ Link ── control, Babel, routed frames of any source
//!                                                 └── end-to-end handshake ──▶ Session ── bus packets
//! Victim:      `hyphae up` on loopback, two processes of their own
//! ```
//!
//! [`Hostile`] speaks the protocol byte by byte, with no engine behind it, so nothing that a node
//! would never send is out of its reach. It blocks, with a time limit on every wait. What a test
//! expects of the node that is attacked is said in the tests.

#![forbid(unsafe_code)]

mod claims;
mod link;
mod node;
mod seal;
mod session;
mod victim;

pub use claims::{Claims, Handshake, Purpose, Secrets};
pub use link::{Heard, Link, Routed};
pub use node::{Answer, Hostile};
pub use seal::LaneKeys;
pub use session::Session;
pub use victim::{Target, Victim};
