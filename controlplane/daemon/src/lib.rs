//! The control-plane process: drives the engines, keeps state files, answers RPC, serves metrics.
//!
//! One thread, several tasks. The engine task (`node`) owns overlay and RIB and is the only one
//! that touches them; RPC and metrics ask it through a channel. Nothing here is on the way of a
//! packet.

#![forbid(unsafe_code)]

mod metrics;
mod node;
mod proxy_client;
mod reload;
mod rpc;
mod run;

pub use reload::Reloader;
pub use run::{Exit, Options, RunError, run};

/// Parsers of foreign input, for the fuzz targets.
pub mod parsers {
    pub use crate::rpc::peer_uid::{Unidentified, owner_in_answer, owner_in_table};
    pub use crate::rpc::rest_peers::{numeric, spellings};
}
