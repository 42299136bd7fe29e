//! Routes: candidates, selection, and what the FIB of the workers shall hold.
//!
//! Sans-I/O: mutate a [`Rib`], then drain [`Rib::poll_fib`] into the program rings of all workers.

#![forbid(unsafe_code)]

pub mod babel;
mod fib;
mod rib;

pub use fib::FibChange;
pub use rib::{
    METRIC_CONNECTED, METRIC_STATIC, Origin, Rib, RouteError, SelectedRoute, StaticRoute, Via,
};

#[cfg(test)]
mod tests;
