//! A mesh of nodes in one thread with virtual time: many real routing engines, real signatures, and a network
//! that delays, drops, duplicates, reorders and partitions, all decided by one seed.
//!
//! Invariants are checked after every event, see [`Violation`]. The world is a library, so that `hyphae-bench
//! mesh` measures with what the tests check.

#![forbid(unsafe_code)]

pub mod clock;
pub mod engine;
pub mod forwarding;
pub mod link;
pub mod measure;
pub mod random;
pub mod scenario;
pub mod speaker;
pub mod topology;
pub mod violation;
pub mod world;

pub use engine::{Effects, Engine};
pub use link::Quality;
pub use random::Random;
pub use topology::{NodeId, Shape};
pub use violation::Violation;
pub use world::{Fault, Setup, World};
