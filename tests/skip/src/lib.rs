//! Reports of skipped tests. libtest captures the output of a test that passes, so a process of its own
//! prints the summary, to the standard error of the test binary, once that binary has ended:
//!
//! ```text
//! test result: ok. 9 passed; …
//! SKIPPED relay::both_drivers: lacks root, for network namespaces
//! 1 skipped in relay-5bb0…
//! ```

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{LazyLock, Mutex};

/// Collects lines until this process ends.
const REPORTER: &str =
    r#"awk -v name="$0" '{ print "SKIPPED " $0 } END { print NR " skipped in " name }' >&2"#;

static LINES: LazyLock<Mutex<Option<ChildStdin>>> = LazyLock::new(|| {
    let program = std::env::current_exe().unwrap_or_default();
    let name = program.file_name().unwrap_or_default();
    let reporter = Command::new("sh")
        .args(["-c", REPORTER])
        .arg(name)
        .stdin(Stdio::piped())
        .spawn();
    Mutex::new(reporter.ok().and_then(|mut child| child.stdin.take()))
});

/// Reports that the running test, or a part of it, is skipped for want of something that CI has too.
///
/// # Panics
/// Under `CI`, where nothing may be lacking.
pub fn lacks(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "lacks {what}");
    skip(&format!("lacks {what}"));
}

/// Reports that the running test, or a part of it, is skipped.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {why}\n", thread.name().unwrap_or("a test"));
    let mut lines = LINES
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let written = lines
        .as_mut()
        .is_some_and(|lines| lines.write_all(line.as_bytes()).is_ok());
    if !written {
        // Without a shell the report is seen with --nocapture only.
        eprint!("SKIPPED {line}");
    }
}
