//! Routes: candidates, selection, and what the FIB of the workers shall hold.
//!
//! Sans-I/O: mutate a [`Rib`], then drain [`Rib::poll_fib`] into the program rings of all workers.
//! The routing protocol is [`babel`]; what it chooses goes into the RIB by [`Rib::set_dynamic`].

#![forbid(unsafe_code)]

pub mod babel;
mod fib;
mod rib;

pub use fib::FibChange;
pub use rib::{
    METRIC_CONNECTED, METRIC_STATIC, NextHop, Origin, Rib, RouteError, SelectedRoute, StaticRoute,
    Via,
};

#[cfg(test)]
mod tests;
