//! Monotonic time, deadlines and repair back-off.
//!
//! Engines take [`Nanos`] as an argument and never read a clock; only the tasks that drive them call [`monotonic`].

#![forbid(unsafe_code)]

mod backoff;
mod nanos;
mod timers;

pub use backoff::RepairBackoff;
pub use nanos::{Nanos, monotonic};
pub use timers::Timers;
