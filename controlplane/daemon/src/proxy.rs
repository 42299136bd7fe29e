//! Socket proxies: programs that speak over Unix sockets talk through the message bus, and neither
//! knows.
//!
//! ```text
//! program ── Unix socket ── outbound ── message (dst, topic) ── forward ── Unix socket ── server
//!        ◀──── answer ────           ◀── reply, same id ────           ◀──── answer ────
//! ```
//!
//! [`framing`] says where requests and answers end and is pure.

pub mod framing;
