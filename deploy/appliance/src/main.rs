//! The `hyphae` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    hyphae::cli::main()
}
