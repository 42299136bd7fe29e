//! The dataplane process: one worker per core, a thread for stream links, and a main thread that
//! lets control planes attach.
//!
//! The main thread opens everything that can fail for an operator's reason (sockets, TUN device,
//! segment, attach socket), starts the workers, and then only waits: for control planes, for
//! signals, for a worker that ended. Workers never wait for it.

#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "buffers have 68 KiB, trains 64 segments, a node 64 workers; every cast stands beside \
              what bounds it"
)]

mod attach;
mod control;
mod cores;
mod device;
mod error;
mod execute;
mod handoff;
mod host;
mod open;
mod options;
mod output;
mod polling;
mod program;
pub mod punts;
mod run;
mod stream;
mod threads;
mod watchdog;
mod worker;

pub use cores::{Cores, CoresError, pin, taken, taken_besides};
pub use error::RunError;
pub use hyphae_driver::{DriverKind, ProbeError, clock, probe, udp::SocketOptions};
pub use options::Options;
pub use run::run;
