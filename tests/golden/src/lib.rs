//! Reads the vector files in `vectors/`. The tests that hold the code against them are in `tests/`.
//!
//! ```text
//! # comment
//! [name of a case]
//! field = value
//! long = first part of the value
//!     goes on where a line is indented
//! ```
//!
//! The files were made by an independent implementation (OpenSSL's primitives, headers packed by
//! hand from docs/internals/frames.md), or copied from the document that each names. They are the
//! protocol: code that disagrees with them is wrong, and changing one breaks every node in the
//! field.

#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::path::Path;
use std::str::FromStr;

/// A case of a vector file.
pub struct Case {
    file: String,
    /// Name of the case.
    pub name: String,
    fields: Vec<(String, String)>,
}

/// The cases of `vectors/<file>.txt`, in order.
///
/// # Panics
/// When the file cannot be read, is not of the form above, or has no case.
pub fn load(file: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("vectors")
        .join(format!("{file}.txt"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    parse(file, &text)
}

fn parse(file: &str, text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let bad = |what: &str| -> ! { panic!("{file}.txt:{number}: {what}: {line}") };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            cases.push(Case {
                file: file.to_owned(),
                name: name.to_owned(),
                fields: Vec::new(),
            });
            continue;
        }
        let Some(case) = cases.last_mut() else {
            bad("field outside a case")
        };
        if line.starts_with(' ') {
            let Some((_, value)) = case.fields.last_mut() else {
                bad("nothing to continue")
            };
            value.push_str(line.trim());
        } else {
            let Some((field, value)) = line.split_once('=') else {
                bad("neither field nor case")
            };
            case.fields
                .push((field.trim().to_owned(), value.trim().to_owned()));
        }
    }
    assert!(!cases.is_empty(), "{file}.txt has no cases");
    cases
}

impl Case {
    /// Where this is, for the message of an assertion.
    pub fn at(&self) -> String {
        format!("{}.txt [{}]", self.file, self.name)
    }

    /// Whether the case has the field.
    pub fn has(&self, field: &str) -> bool {
        self.fields.iter().any(|(name, _)| name == field)
    }

    /// The value of a field as it is written.
    ///
    /// # Panics
    /// When there is none.
    pub fn text(&self, field: &str) -> &str {
        match self.fields.iter().find(|(name, _)| name == field) {
            Some((_, value)) => value,
            None => panic!("{} has no field {field}", self.at()),
        }
    }

    /// The value of a field, by the parser of its type.
    ///
    /// # Panics
    /// When there is none, or it does not parse.
    pub fn parsed<T: FromStr<Err: Debug>>(&self, field: &str) -> T {
        self.text(field)
            .parse()
            .unwrap_or_else(|e| panic!("{} {field}: {e:?}", self.at()))
    }

    /// A number, decimal or `0x`.
    ///
    /// # Panics
    /// When there is none, or it does not fit.
    pub fn number<T: TryFrom<u64, Error: Debug>>(&self, field: &str) -> T {
        let text = self.text(field);
        let number = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        let number = number.unwrap_or_else(|e| panic!("{} {field}: {e}", self.at()));
        number
            .try_into()
            .unwrap_or_else(|e| panic!("{} {field}: {e:?}", self.at()))
    }

    /// Bytes in hexadecimal.
    ///
    /// # Panics
    /// When there are none, or they are not pairs of digits.
    pub fn bytes(&self, field: &str) -> Vec<u8> {
        let text = self.text(field);
        let pairs = text.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair)
                .ok()
                .filter(|pair| pair.len() == 2);
            pair.and_then(|pair| u8::from_str_radix(pair, 16).ok())
        });
        pairs
            .collect::<Option<_>>()
            .unwrap_or_else(|| panic!("{} {field}: not hexadecimal: {text}", self.at()))
    }

    /// Exactly `N` bytes in hexadecimal.
    ///
    /// # Panics
    /// As [`Self::bytes`], or when there are more or fewer.
    pub fn array<const N: usize>(&self, field: &str) -> [u8; N] {
        let bytes = self.bytes(field);
        let len = bytes.len();
        bytes
            .try_into()
            .unwrap_or_else(|_| panic!("{} {field}: {len} bytes, not {N}", self.at()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_file_is_read_as_described() {
        let cases = parse(
            "x",
            "# head\n\n[a]\nn = 0x10\nempty =\n[b]\nlong =\n    0a0b\n    0c\n",
        );
        assert_eq!(
            (cases.len(), &*cases[0].name, &*cases[1].name),
            (2, "a", "b")
        );
        assert_eq!(cases[0].number::<u8>("n"), 16);
        assert_eq!(cases[0].bytes("empty"), []);
        assert_eq!(cases[1].array("long"), [10, 11, 12]);
        assert!(cases[1].has("long") && !cases[1].has("n"));
    }

    #[test]
    #[should_panic(expected = "x.txt:1: field outside a case: n = 1")]
    fn a_field_outside_a_case_is_an_error() {
        parse("x", "n = 1");
    }
}
