//! Instructions per operation of the packet and message paths, counted by valgrind and compared with the
//! committed counts.
//!
//! ```text
//! hyphae-instructions check FILE    counts, compares with FILE, fails on growth
//! hyphae-instructions accept FILE   counts, writes FILE
//! hyphae-instructions run NAME      runs one scenario; the process that valgrind starts
//! ```

#![forbid(unsafe_code)]

/// Replaces the standard macro, which panics if standard error is closed.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod counts;
mod scenarios;

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["check", file] => counts::check(Path::new(file)),
        ["accept", file] => counts::accept(Path::new(file)),
        ["run", name] => scenarios::run(name),
        _ => (|| bail!("one of: check FILE, accept FILE, run NAME"))(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The exit status of SIGPIPE.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(141),
        Err(error) => {
            eprintln!("hyphae-instructions: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the reader of standard output has disconnected.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
