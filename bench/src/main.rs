//! `hyphae-bench`: load generators and comparisons, each with its baseline in the same run.

#![forbid(unsafe_code)]

/// In place of the standard one, which panics: what cannot be written on standard error, nobody reads.
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
        // As SIGPIPE would end it.
        Err(error) if is_reader_gone(&error) => ExitCode::from(141),
        Err(error) => {
            eprintln!("hyphae-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether whoever read standard output has gone.
fn is_reader_gone(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
