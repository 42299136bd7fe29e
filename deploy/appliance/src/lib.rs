//! The Hyphae appliance: command line, supervisor of the two planes, and the lab.

#![forbid(unsafe_code)]

pub mod cli;
mod doctor;
pub mod lab;
mod log;
mod supervisor;
