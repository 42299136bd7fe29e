//! Routes: candidates, selection, and the entries of the workers' FIB.
//!
//! Sans-I/O: mutate a [`Rib`], then drain [`Rib::poll_fib`] into the program rings of all workers.
//! The routing protocol is [`babel`]; its routes enter the RIB by [`Rib::set_dynamic`].

#![forbid(unsafe_code)]

pub mod babel;
mod fib;
mod rib;

pub use fib::FibChange;
pub use rib::{
    METRIC_CONNECTED, METRIC_STATIC, NextHop, Rib, RouteError, RouteSource, SelectedRoute,
    StaticRoute, Via,
};

#[cfg(test)]
mod tests;
