//! Output of results: a table, or one JSON document.

use std::io::Write;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine::Machine;

/// The output of one subcommand.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    /// The subcommand.
    pub(crate) bench: String,
    /// End of the run, UTC, by the system clock.
    pub(crate) date: String,
    pub(crate) machine: Machine,
    /// In the format of the subcommand.
    pub(crate) rows: Vec<Value>,
}

impl Document {
    /// The rows, deserialized.
    pub(crate) fn rows_as<R: for<'a> Deserialize<'a>>(&self) -> anyhow::Result<Vec<R>> {
        let rows = self.rows.iter().cloned().map(serde_json::from_value);
        let rows = rows.collect::<Result<_, _>>();
        rows.with_context(|| format!("rows of `hyphae-bench {}`", self.bench))
    }
}

/// Cells of a table, and notes below it.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    pub(crate) fn new<const N: usize, R>(
        columns: [&'static str; N],
        rows: &[R],
        cells: impl Fn(&R) -> [String; N],
    ) -> Self {
        Self {
            columns: columns.into(),
            rows: rows.iter().map(|row| cells(row).into()).collect(),
            notes: Vec::new(),
        }
    }

    /// Adds a line below the table.
    pub(crate) fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Formats the table as Markdown, without the notes.
    pub(crate) fn markdown(&self) -> String {
        // A bar ends a cell.
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let cells: Vec<String> = cells.map(|cell| cell.replace('|', "/")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut out = line(&mut self.columns.iter().copied());
        out += &line(&mut self.columns.iter().map(|_| "---"));
        for row in &self.rows {
            out += &line(&mut row.iter().map(String::as_str));
        }
        out
    }

    /// Formats the table as text: numbers aligned right, text left.
    fn text(&self) -> String {
        let number = |cell: &str| {
            cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit() || c == '-')
        };
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_header(&self.columns).add_rows(&self.rows);
        for (n, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if n > 0 && self.rows.iter().all(|row| number(&row[n])) {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
        let mut text = table.trim_fmt();
        for note in &self.notes {
            text += "\n";
            text += note;
        }
        text
    }
}

/// Prints results.
pub(crate) fn show<R: Serialize>(
    bench: &str,
    rows: &[R],
    table: &Table,
    json: bool,
) -> anyhow::Result<()> {
    let machine = Machine::here();
    let mut out = std::io::stdout();
    if json {
        let rows = rows.iter().map(serde_json::to_value);
        let document = Document {
            bench: bench.to_owned(),
            date: crate::machine::date(),
            machine,
            rows: rows.collect::<Result<_, _>>()?,
        };
        return Ok(writeln!(
            out,
            "{}",
            serde_json::to_string_pretty(&document)?
        )?);
    }
    let date = crate::machine::date();
    Ok(writeln!(out, "{}\n{machine}, {date}", table.text())?)
}

/// One result, with its baseline from the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Measured {
    pub(crate) what: String,
    /// Its variant.
    pub(crate) of: String,
    /// The varied size, length or count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<u64>,
    pub(crate) value: f64,
    pub(crate) unit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<f64>,
    /// Value divided by baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

impl Measured {
    pub(crate) fn new(
        what: impl Into<String>,
        of: impl Into<String>,
        value: f64,
        unit: &str,
    ) -> Self {
        Self {
            what: what.into(),
            of: of.into(),
            size: None,
            value,
            unit: unit.to_owned(),
            baseline: None,
            ratio: None,
            note: None,
        }
    }

    pub(crate) fn size(mut self, size: usize) -> Self {
        self.size = u64::try_from(size).ok();
        self
    }

    pub(crate) fn against(mut self, baseline: f64) -> Self {
        self.baseline = Some(baseline);
        self.ratio = (baseline > 0.0).then(|| self.value / baseline);
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// Prints results; `baseline` names what they are compared with.
pub(crate) fn show_measured(
    bench: &str,
    rows: &[Measured],
    baseline: &str,
    json: bool,
) -> anyhow::Result<()> {
    let table = measured_table(rows).note(format!("baseline: {baseline}"));
    show(bench, rows, &table, json)
}

/// Results as a table.
pub(crate) fn measured_table(rows: &[Measured]) -> Table {
    let columns = [
        "what", "of", "size", "value", "unit", "baseline", "ratio", "note",
    ];
    Table::new(columns, rows, |row| {
        [
            row.what.clone(),
            row.of.clone(),
            row.size.map_or_else(String::new, |size| size.to_string()),
            number(row.value),
            row.unit.clone(),
            maybe(row.baseline),
            maybe(row.ratio),
            row.note.clone().unwrap_or_default(),
        ]
    })
}

/// Formats an optional number.
pub(crate) fn maybe(value: Option<f64>) -> String {
    value.map_or_else(String::new, number)
}

/// Formats a number with three significant digits or more.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 || value == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_numbers_right_and_text_left() {
        let rows = [("one", 1.5, "a note"), ("four hundred", 400.0, "")];
        let table = Table::new(["what", "value", "note"], &rows, |row| {
            [row.0.to_owned(), number(row.1), row.2.to_owned()]
        });
        let expected = [
            "what          value  note",
            "one            1.50  a note",
            "four hundred  400.0",
            "below",
        ];
        assert_eq!(table.note("below").text(), expected.join("\n"));
    }

    #[test]
    fn a_document_round_trips() {
        let row = Measured::new("lookup", "hit", 10.0, "ns")
            .size(1000)
            .against(5.0);
        assert_eq!(row.ratio, Some(2.0));
        let document = Document {
            bench: "fib".to_owned(),
            date: crate::machine::date(),
            machine: Machine::here(),
            rows: vec![serde_json::to_value(&row).expect("a value")],
        };
        let text = serde_json::to_string(&document).expect("JSON");
        let read: Document = serde_json::from_str(&text).expect("a document");
        assert_eq!(read.rows_as::<Measured>().expect("rows"), [row]);
    }
}
