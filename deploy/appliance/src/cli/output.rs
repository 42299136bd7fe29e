//! How answers and errors reach people and programs. Nothing else in this program writes to standard output or
//! standard error, the log excepted; nothing here panics.
//!
//! A reader that has gone (EPIPE) ends the program quietly, as SIGPIPE would; any other failure is an error.

use std::fmt;
use std::io::{self, Write};

use hyphae_rpc::ClientError;
use serde::Serialize;
use serde_json::{Value, json};

use crate::text;

/// Exit code after a reader has gone: that of a program ended by SIGPIPE, as a shell shows it.
pub(crate) const READER_GONE: u8 = 141;

/// Standard output could not be written; inside an `io::Error` of the same kind.
#[derive(Debug)]
struct Unwritable(io::Error);

impl fmt::Display for Unwritable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "standard output: {}", self.0)
    }
}

impl std::error::Error for Unwritable {}

/// An error that the document on standard output has told.
#[derive(Debug)]
struct Reported(String);

impl fmt::Display for Reported {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Reported {}

/// Writes bytes as they are. They have left this process when it returns.
pub(crate) fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| io::Error::new(error.kind(), Unwritable(error)))
}

/// Prints one JSON document.
pub(crate) fn document(value: &impl Serialize) -> anyhow::Result<()> {
    let document = serde_json::to_string_pretty(value)?;
    Ok(raw(format!("{}\n", text::json(&document)).as_bytes())?)
}

/// Prints one JSON document in one line, so that a stream of them can be read line by line.
pub(crate) fn document_line(value: &impl Serialize) -> anyhow::Result<()> {
    let document = serde_json::to_string(value)?;
    Ok(raw(format!("{}\n", text::json(&document)).as_bytes())?)
}

/// Prints a line, or several; control characters are escaped. What others have chosen goes through
/// [`text::one_line`] first where it is a part of a line.
pub(crate) fn line(text: impl fmt::Display) -> io::Result<()> {
    raw(format!("{}\n", text::lines(&text.to_string())).as_bytes())
}

/// Ends a command that has something to show even when it failed: one document with the failure in it, or the
/// failure alone where text has been printed already.
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

/// Prints an error that comes after the document of the command, on standard error, and marks it as told.
pub(crate) fn reported(error: &anyhow::Error) -> anyhow::Error {
    let message = chain(error);
    notice(format_args!("hyphae: {message}"));
    Reported(message).into()
}

/// Prints a table with aligned columns.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let cells = |row: &Vec<String>| -> Vec<String> {
        let cells = row.iter();
        cells
            .map(|cell| text::one_line(cell).into_owned())
            .collect()
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let width = |n: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(n))
            .map(|cell| cell.chars().count());
        cells.chain([heads[n].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..heads.len()).map(width).collect();
    let show = |cells: Vec<&str>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        line(padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    show(heads.to_vec())?;
    rows.iter()
        .try_for_each(|row| show(row.iter().map(String::as_str).collect()))
}

/// Prints a line for people on standard error; where that cannot be written, nobody reads it.
pub(crate) fn notice(text: impl fmt::Display) {
    let text = text.to_string();
    let _ = writeln!(io::stderr(), "{}", text::lines(&text));
}

/// Shows progress in place of the last on a terminal's standard error.
pub(crate) fn progress(text: impl fmt::Display) {
    let mut err = io::stderr();
    let _ = write!(err, "\r\x1b[K{text}").and_then(|()| err.flush());
}

/// The error and its causes in one sentence; causes that the sentence has already are left out.
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

/// Whether the reader of standard output has gone.
pub(crate) fn is_reader_gone(error: &anyhow::Error) -> bool {
    is_unwritable(error, |error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn is_unwritable(error: &anyhow::Error, which: impl Fn(&io::Error) -> bool) -> bool {
    error.chain().any(|cause| {
        let error = cause.downcast_ref::<io::Error>();
        error.is_some_and(|error| {
            let inner = error.get_ref();
            inner.is_some_and(|inner| inner.is::<Unwritable>()) && which(error)
        })
    })
}

/// Prints an error: one sentence, or a document. One that a document has told is not repeated.
pub(crate) fn error(error: &anyhow::Error, as_json: bool) {
    if error.is::<Reported>() {
        return;
    }
    let message = chain(error);
    let as_json = as_json && !is_unwritable(error, |_| true);
    if as_json && error_document(&message, code_of(error)).is_ok() {
        return;
    }
    // Lines of its own, so that none that others have chosen looks like one of this program.
    notice(format_args!("hyphae: {}", message.replace('\n', "\n  ")));
}

/// Prints an error as a document.
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
    fn only_a_closed_standard_output_ends_quietly() {
        let error = |kind| io::Error::from(kind);
        let marked = |kind| anyhow::Error::new(io::Error::new(kind, Unwritable(error(kind))));
        assert!(is_reader_gone(&marked(io::ErrorKind::BrokenPipe)));
        assert!(!is_reader_gone(&marked(io::ErrorKind::StorageFull)));
        // A node that hangs up is an error like any other.
        let of_the_node = ClientError::Io {
            place: "rpc.sock".to_owned(),
            source: error(io::ErrorKind::BrokenPipe),
        };
        assert!(!is_reader_gone(&of_the_node.into()));
    }
}
