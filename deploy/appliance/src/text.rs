//! Escapes untrusted text for terminals and logs.
//!
//! Topics, payloads, names and errors are chosen by other nodes. Terminals execute control characters (C0, DEL, C1),
//! and directional controls reorder the displayed text.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character controls the terminal or the order of text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            // Directional marks, embeddings, overrides and isolates (UAX #9); line and paragraph separator.
            '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Escapes text of several lines; line feeds and tabs remain.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| !matches!(c, '\n' | '\t') && is_unsafe(c), rust)
}

/// Escapes text within a line; line feeds are escaped, too.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_unsafe, rust)
}

/// Escapes a JSON document; its value does not change.
pub(crate) fn json(document: &str) -> Cow<'_, str> {
    // Line feeds occur outside of strings only: serde_json escapes those within.
    escaped(
        document,
        |c| c != '\n' && is_unsafe(c),
        |out, c| {
            // All of them are in the Basic Multilingual Plane.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        },
    )
}

fn rust(out: &mut String, c: char) {
    out.extend(c.escape_default());
}

fn escaped(
    text: &str,
    is_escaped: impl Fn(char) -> bool,
    escape: impl Fn(&mut String, char),
) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            escape(&mut out, c);
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C0, DEL, C1 and directional controls.
    const HOSTILE: &str = "a\x1b[2Jb\x07\r\x7f\u{9b}31m\u{202e}c\u{2066}\u{200f}\u{2028}";

    #[test]
    fn control_characters_and_directional_controls_are_escaped() {
        let shown = one_line(HOSTILE);
        assert!(!shown.contains(is_unsafe), "{shown:?}");
        assert!(
            shown.starts_with(r"a\u{1b}[2Jb\u{7}\r\u{7f}\u{9b}31m\u{202e}c"),
            "{shown}"
        );
        assert_eq!(one_line("two\nlines\tof ü 漢"), r"two\nlines\tof ü 漢");
        assert_eq!(lines("two\nlines\tof \x1b"), "two\nlines\tof \\u{1b}");
    }

    #[test]
    fn ordinary_text_is_not_copied() {
        assert!(matches!(one_line("naïve 漢字 😀"), Cow::Borrowed(_)));
    }

    #[test]
    fn an_escaped_document_is_the_same_value() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, "\n\t\\\""] });
        let document = serde_json::to_string_pretty(&value).unwrap();
        let shown = json(&document);
        assert!(!shown.replace('\n', "").contains(is_unsafe), "{shown:?}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
            value
        );
    }
}
