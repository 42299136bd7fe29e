//! The control-plane process: drives the engines, keeps state files, answers RPC, serves metrics.
//!
//! One thread, several tasks. The engine task (`hyphae-node`) owns the engines; RPC and metrics send it requests
//! through a channel. Nothing here is on the path of a packet.

#![forbid(unsafe_code)]

mod build;
mod error;
mod open;
mod options;
mod run;

pub use error::RunError;
pub use hyphae_api::{Reloader, parsers};
pub use options::{Exit, Options};
pub use run::run;
