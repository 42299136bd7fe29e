//! The commented default file and the reference page, both generated from the table of keys.

use std::fmt::Write;

use crate::keys::{KEYS_ALL, Key, SECTIONS};

/// Longest line of a comment.
const WIDTH: usize = 110;

/// deploy/default.toml.
pub fn default_file() -> String {
    let mut text = String::from(
        "# Hyphae: every setting with its default. All are optional.\n\
         # `hyphae up --config FILE` reads it; flags override it. `hyphae config explain KEY` explains a key,\n\
         # `hyphae config check FILE` checks a file.\n",
    );
    for (section, intro) in SECTIONS {
        if !section.is_empty() {
            let gap = if intro.is_empty() { "" } else { "\n" };
            let _ = write!(text, "\n[{section}]\n{}{gap}", comment(intro));
        }
        for key in KEYS_ALL.iter().filter(|key| key.section() == *section) {
            if section.is_empty() {
                text.push('\n');
            }
            text.push_str(&comment(key.help));
            let _ = match key.default {
                "" => writeln!(text, "# {} = {}", key.name(), key.example),
                default => writeln!(text, "{} = {default}", key.name()),
            };
        }
    }
    text
}

fn comment(help: &str) -> String {
    wrapped(help)
        .iter()
        .map(|line| format!("# {line}\n"))
        .collect()
}

/// Wraps a description; examples are not wrapped.
pub fn wrapped(help: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in help.split('\n').filter(|paragraph| !paragraph.is_empty()) {
        if paragraph.starts_with("  ") {
            lines.push(paragraph.to_owned());
            continue;
        }
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if line.chars().count() + 1 + word.chars().count() > WIDTH - 3 {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

/// docs/configuration.md.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         One TOML file, overridden by flags. `hyphae up --config FILE` reads it; without the flag, `config.toml` in the\n\
         state directory is read if it exists. This page and `deploy/default.toml` are generated from the table in\n\
         `controlplane/config/src/keys.rs`:\n\
         `HYPHAE_WRITE_CONFIG=1 cargo test -p hyphae-config`. [Internals](internals/configuration.md) describes validation\n\
         and reload.\n\n\
         *Live* keys change with `hyphae reload` or SIGHUP without a restart.\n",
    );
    for (section, intro) in SECTIONS {
        match *section {
            "" => text.push_str("\n## Without a section\n"),
            section => {
                let _ = writeln!(text, "\n## `[{section}]`");
            }
        }
        if !intro.is_empty() {
            let _ = writeln!(text, "\n{}", escape(intro));
        }
        text.push_str("\n| Key | Value | Default | Live | Meaning |\n|---|---|---|---|---|\n");
        for key in KEYS_ALL.iter().filter(|key| key.section() == *section) {
            let default = match key.default {
                "" => "none".to_owned(),
                default => format!("`{default}`"),
            };
            let live = if key.live { "yes" } else { "" };
            let _ = writeln!(
                text,
                "| `{}` | {} | {default} | {live} | {} |",
                key.name(),
                escape(&value(key)),
                escape(&prose(key.help))
            );
        }
    }
    text
}

/// What a value may be, with its unit.
pub fn value(key: &Key) -> String {
    match key.unit {
        "" => key.allowed(),
        unit if key.range.is_some() => format!("{} {unit}", key.allowed()),
        unit => format!("{}, {unit}", key.allowed()),
    }
}

/// A cell has one line; examples in it become code.
fn prose(help: &str) -> String {
    let example = |line: &str| {
        let code: Vec<_> = line.split_whitespace().collect();
        format!("`{}`", code.join(" "))
    };
    let lines = help.split('\n').map(|line| {
        if line.starts_with("  ") {
            example(line)
        } else {
            line.to_owned()
        }
    });
    lines.collect::<Vec<_>>().join(" ")
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|")
}
