//! Output of commands: text, tables, JSON documents and errors. All writes to standard output and standard error go
//! through this module, except the log. Nothing here panics.
//!
//! A closed pipe (EPIPE) ends the program silently, as SIGPIPE would; any other write error is reported.

use std::fmt;
use std::io::{self, Write};

use comfy_table::Table;
use hyphae_rpc::ClientError;
use serde::Serialize;
use serde_json::{Value, json};

use crate::text;

/// Exit code after EPIPE on standard output: 128 + SIGPIPE, as shells report it.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// Marks a write error of standard output; wrapped in an `io::Error` of the same kind.
#[derive(Debug)]
struct StdoutError(io::Error);

impl fmt::Display for StdoutError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "standard output: {}", self.0)
    }
}

impl std::error::Error for StdoutError {}

/// An error that was printed already.
#[derive(Debug)]
struct Reported(String);

impl fmt::Display for Reported {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Reported {}

/// Writes bytes unchanged, and flushes.
pub(crate) fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| io::Error::new(error.kind(), StdoutError(error)))
}

/// Prints one JSON document.
pub(crate) fn document(value: &impl Serialize) -> anyhow::Result<()> {
    let document = serde_json::to_string_pretty(value)?;
    Ok(raw(format!("{}\n", text::json(&document)).as_bytes())?)
}

/// Prints one JSON document in one line, for streams (JSON Lines).
pub(crate) fn document_line(value: &impl Serialize) -> anyhow::Result<()> {
    let document = serde_json::to_string(value)?;
    Ok(raw(format!("{}\n", text::json(&document)).as_bytes())?)
}

/// Prints one or more lines; control characters are escaped. Untrusted text within a line must be escaped with
/// [`text::one_line`] first.
pub(crate) fn line(text: impl fmt::Display) -> io::Result<()> {
    raw(format!("{}\n", text::lines(&text.to_string())).as_bytes())
}

/// Prints whether a command changed something.
pub(crate) fn changed(changed: bool, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return document(&json!({ "changed": changed }));
    }
    Ok(line(if changed { "done" } else { "nothing to change" })?)
}

/// Ends a command that has output even on failure: as JSON, one document that includes the failure; as text, which was
/// printed before, the failure alone.
pub(crate) fn outcome(
    mut shown: Value,
    failure: Option<String>,
    as_json: bool,
) -> anyhow::Result<()> {
    if as_json {
        if let (Value::Object(shown), Some(message)) = (&mut shown, &failure) {
            let error = json!({ "message": message, "code": null });
            shown.insert("error".to_owned(), error);
        }
        document(&shown)?;
    }
    match failure {
        None => Ok(()),
        Some(message) if as_json => Err(Reported(message).into()),
        Some(message) => Err(anyhow::Error::msg(message)),
    }
}

/// Prints an error that follows the document of the command to standard error, and marks it as printed.
pub(crate) fn reported(error: &anyhow::Error) -> anyhow::Error {
    let message = chain(error);
    notice(format_args!("hyphae: {message}"));
    Reported(message).into()
}

/// Prints a table with aligned columns; control characters in cells are escaped.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(heads);
    let escaped = |row: &Vec<String>| -> Vec<_> {
        row.iter()
            .map(|cell| text::one_line(cell).into_owned())
            .collect()
    };
    table.add_rows(rows.iter().map(escaped));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    line(table.trim_fmt())
}

/// Prints a line to standard error; write errors are ignored.
pub(crate) fn notice(text: impl fmt::Display) {
    let text = text.to_string();
    let _ = writeln!(io::stderr(), "{}", text::lines(&text));
}

/// Replaces the progress line on a terminal's standard error.
pub(crate) fn progress(text: impl fmt::Display) {
    let mut err = io::stderr();
    let _ = write!(err, "\r\x1b[K{text}").and_then(|()| err.flush());
}

/// The error and its causes in one line; causes whose text is already included are omitted.
fn chain(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// Whether standard output was closed by its reader.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    is_stdout_error(error, |error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn is_stdout_error(error: &anyhow::Error, which: impl Fn(&io::Error) -> bool) -> bool {
    error.chain().any(|cause| {
        let error = cause.downcast_ref::<io::Error>();
        error.is_some_and(|error| {
            let inner = error.get_ref();
            inner.is_some_and(|inner| inner.is::<StdoutError>()) && which(error)
        })
    })
}

/// Prints an error as a line or as a JSON document, unless it was printed already.
pub(crate) fn error(error: &anyhow::Error, as_json: bool) {
    if error.is::<Reported>() {
        return;
    }
    let message = chain(error);
    let as_json = as_json && !is_stdout_error(error, |_| true);
    if as_json && error_document(&message, code_of(error)).is_ok() {
        return;
    }
    // Continuation lines are indented, so that untrusted text cannot imitate a line of this program.
    notice(format_args!("hyphae: {}", message.replace('\n', "\n  ")));
}

/// Prints an error as a JSON document.
pub(crate) fn error_document(message: &str, code: Option<i64>) -> anyhow::Result<()> {
    document_line(&json!({ "error": { "message": message, "code": code } }))
}

fn code_of(error: &anyhow::Error) -> Option<i64> {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Call(error)) => Some(error.code),
        Some(
            ClientError::Absent { .. }
            | ClientError::Denied { .. }
            | ClientError::Io { .. }
            | ClientError::Protocol { .. },
        )
        | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_standard_output_ends_silently() {
        let error = |kind| io::Error::from(kind);
        let marked = |kind| anyhow::Error::new(io::Error::new(kind, StdoutError(error(kind))));
        assert!(is_broken_pipe(&marked(io::ErrorKind::BrokenPipe)));
        assert!(!is_broken_pipe(&marked(io::ErrorKind::StorageFull)));
        // EPIPE on the RPC connection is an ordinary error.
        let of_the_node = ClientError::Io {
            place: "rpc.sock".to_owned(),
            source: error(io::ErrorKind::BrokenPipe),
        };
        assert!(!is_broken_pipe(&of_the_node.into()));
    }
}
