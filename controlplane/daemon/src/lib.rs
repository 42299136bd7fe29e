//! The control-plane process: drives the engines, keeps state files, answers RPC, serves metrics.
//!
//! One thread, several tasks. The engine task (`hyphae-node`) owns the engines; RPC and metrics send it requests
//! through a channel. Nothing here is on the path of a packet.

#![forbid(unsafe_code)]

mod build;
mod error;
mod metrics;
mod open;
mod options;
mod reload;
mod rpc;
mod run;

pub use error::RunError;
pub use options::{Exit, Options};
pub use reload::Reloader;
pub use run::run;

/// Parsers of foreign input, for the fuzz targets.
pub mod parsers {
    pub use crate::rpc::peer_uid::{Unidentified, owner_in_answer, owner_in_table};
    pub use crate::rpc::rest_peers::{numeric, spellings};
}
