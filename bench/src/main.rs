//! `hyphae-bench`: load generators and comparisons, each with its baseline in the same run.

#![forbid(unsafe_code)]

/// Replaces the standard macro, which panics if standard error is closed.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

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
        // The exit status of SIGPIPE.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(141),
        Err(error) => {
            eprintln!("hyphae-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the reader of standard output has disconnected.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
