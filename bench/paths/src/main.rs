//! Instructions of the ways of packets and messages, counted by valgrind and held against the
//! committed counts.
//!
//! ```text
//! hyphae-instructions check FILE    counts, compares with FILE, fails on growth
//! hyphae-instructions accept FILE   counts, writes FILE
//! hyphae-instructions run NAME      goes one way; what valgrind is started on
//! ```

#![forbid(unsafe_code)]

mod counts;
mod ways;

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["check", file] => counts::check(Path::new(file)),
        ["accept", file] => counts::accept(Path::new(file)),
        ["run", name] => ways::run(name),
        _ => (|| bail!("one of: check FILE, accept FILE, run NAME"))(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyphae-instructions: {error:#}");
            ExitCode::FAILURE
        }
    }
}
