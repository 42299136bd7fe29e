//! Durable state of a node.
//!
//! * [`files`]: the state directory, its lock, the key of the node, state files
//! * [`stored`]: a setting in a state file, changed on disk and in memory together
//! * [`network_key`], [`token`]: secrets in files that the configuration names
//! * [`inbox`]: received messages that have not been delivered yet

#![forbid(unsafe_code)]

pub mod files;
pub mod inbox;
pub mod network_key;
pub mod stored;
pub mod token;
