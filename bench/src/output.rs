//! What was measured, as a table for people or one JSON document for programs.

use std::io::Write;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine::Machine;

/// Everything that one subcommand says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    /// The subcommand.
    pub(crate) bench: String,
    /// When it ended, UTC, as the system's clock says.
    pub(crate) date: String,
    pub(crate) machine: Machine,
    /// As the subcommand defines them.
    pub(crate) rows: Vec<Value>,
}

impl Document {
    /// The rows as what they were written from.
    pub(crate) fn rows_as<R: for<'a> Deserialize<'a>>(&self) -> anyhow::Result<Vec<R>> {
        let rows = self.rows.iter().cloned().map(serde_json::from_value);
        let rows = rows.collect::<Result<_, _>>();
        rows.with_context(|| format!("rows of `hyphae-bench {}`", self.bench))
    }
}

/// Cells of a table; what is below it.
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

    /// A line below the table.
    pub(crate) fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// The same for a page; notes are for whoever explains the table there.
    pub(crate) fn markdown(&self) -> String {
        // A bar would end the cell.
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

    /// Its lines: numbers at the right of their columns, words at the left.
    fn lines(&self) -> Vec<String> {
        let count = |text: &str| text.chars().count();
        let columns = self.columns.iter().enumerate().map(|(n, head)| {
            let cells = || self.rows.iter().map(move |row| row[n].as_str());
            let width = cells().map(count).max().unwrap_or(0).max(count(head));
            let number = |cell: &str| {
                cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit() || c == '-')
            };
            (width, n > 0 && cells().all(number))
        });
        let columns: Vec<_> = columns.collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded = cells.zip(&columns).map(|(cell, (width, right))| {
                if *right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let mut lines = vec![line(&mut self.columns.iter().copied())];
        for row in &self.rows {
            lines.push(line(&mut row.iter().map(String::as_str)));
        }
        lines.extend(self.notes.iter().cloned());
        lines
    }
}

/// Prints what was measured.
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
    for line in table.lines() {
        writeln!(out, "{line}")?;
    }
    Ok(writeln!(out, "{machine}, {}", crate::machine::date())?)
}

/// One thing measured, and the same without Hyphae in the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Measured {
    pub(crate) what: String,
    /// Which kind of it.
    pub(crate) of: String,
    /// How large, long or many, where that is what varies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<u64>,
    pub(crate) value: f64,
    pub(crate) unit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<f64>,
    /// The value by the baseline.
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

/// Prints things measured; `baseline` says what they are compared with.
pub(crate) fn show_measured(
    bench: &str,
    rows: &[Measured],
    baseline: &str,
    json: bool,
) -> anyhow::Result<()> {
    let table = measured_table(rows).note(format!("baseline: {baseline}"));
    show(bench, rows, &table, json)
}

/// Things measured, in a table.
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

/// A number where there is one.
pub(crate) fn maybe(value: Option<f64>) -> String {
    value.map_or_else(String::new, number)
}

/// A number with as many decimals as say something.
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
    fn numbers_stand_at_the_right_and_words_at_the_left() {
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
        assert_eq!(table.note("below").lines(), expected);
    }

    #[test]
    fn a_document_gives_back_what_was_measured() {
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
