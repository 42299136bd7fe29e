//! How answers and errors reach people and programs.

use hyphae_rpc::ClientError;
use serde::Serialize;
use serde_json::json;

/// Prints one JSON document.
#[allow(clippy::print_stdout, reason = "this is what standard output is for")]
pub(crate) fn document(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints a line.
#[allow(clippy::print_stdout, reason = "this is what standard output is for")]
pub(crate) fn line(text: impl std::fmt::Display) {
    println!("{text}");
}

/// Prints a table with aligned columns.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) {
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
        line(padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    show(heads.to_vec());
    rows.iter()
        .for_each(|row| show(row.iter().map(String::as_str).collect()));
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

/// Prints an error: one sentence, or a document.
pub(crate) fn error(error: &anyhow::Error, as_json: bool) {
    let message = chain(error);
    if as_json {
        let code = match error.downcast_ref::<ClientError>() {
            Some(ClientError::Call(error)) => Some(error.code),
            Some(
                ClientError::Absent { .. }
                | ClientError::Denied { .. }
                | ClientError::Io { .. }
                | ClientError::Protocol { .. },
            )
            | None => None,
        };
        line(json!({ "error": { "message": message, "code": code } }));
    } else {
        eprintln!("hyphae: {message}");
    }
}
