//! The Hyphae appliance: command line, supervisor of the two planes, doctor and lab.

#![forbid(unsafe_code)]
#![warn(clippy::print_stderr)]

pub mod cli;
mod doctor;
pub mod lab;
mod log;
mod supervisor;
mod text;
