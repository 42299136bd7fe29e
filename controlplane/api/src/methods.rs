//! The methods, one function each: checks the parameters, executes the call, renders the result.

mod admin;
mod config;
mod mailbox;
mod messages;
mod node;
mod peers;
mod routes;
mod topics;

pub(super) use node::document;
