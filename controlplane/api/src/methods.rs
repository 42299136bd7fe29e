//! The methods, one function each: checks the parameters, does what is asked, renders the result.

mod admin;
mod config;
mod mailbox;
mod messages;
mod node;
mod peers;
mod routes;
mod topics;

pub(super) use node::document;
