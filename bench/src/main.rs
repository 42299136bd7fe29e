//! `hyphae-bench`: load generators and comparisons, each with its baseline in the same run.

#![forbid(unsafe_code)]

mod bus;
mod cli;
mod command;
mod machine;
mod mesh;
mod micro;
mod output;
mod process;
mod report;
mod rib;
mod stats;
mod swarm;
mod transit;
mod tunnel;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyphae-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
