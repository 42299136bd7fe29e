//! Covers: the terms of docs/glossary.md. Words that the project has replaced with a standard term do not come back.

use std::collections::BTreeSet;

use hyphae_test_tidy::{files, read};

/// Replaced words, and the terms for them. Whole words, or parts of identifiers between underscores and capitals.
const REPLACED: &[(&str, &str)] = &[
    ("anew", "again, regenerate, restart"),
    ("carry_out", "execute"),
    ("barred", "infeasible, excluded"),
    ("believe", "authorize, accept, validate"),
    ("believed", "authorized, accepted, validated"),
    ("believes", "authorizes, accepts, validates"),
    ("courier", "bus client"),
    ("door", "listener, endpoint"),
    ("doors", "listeners, endpoints"),
    ("farewell", "exit notifier"),
    ("give_back_memory", "trim"),
    ("hand_out", "enqueue_tx, distribute"),
    ("held back", "deferred, delayed"),
    ("in_a_line", "status_line"),
    ("in vain", "without an answer"),
    ("judge_path", "detect_losses"),
    ("knock", "send a first message"),
    ("knocks", "first messages"),
    ("lent", "in flight"),
    ("let_go", "release, retry_while_busy"),
    ("look-up", "lookup"),
    ("look-ups", "lookups"),
    ("look_after", "expire"),
    ("mend", "fix, repair"),
    ("nine tenths", "p90"),
    ("patience", "timeout"),
    ("patiently", "retry_while_busy"),
    ("plausible", "valid, sane"),
    ("pushed back", "deferred, back-pressured"),
    ("put_off", "defer"),
    ("say_kept", "send_batch_ack"),
    ("stranger", "unauthenticated source"),
    ("strangers", "unauthenticated sources"),
    ("vigil", "watchdog"),
    ("whoever asked", "the caller"),
    ("worth_a_switch", "switch_hysteresis"),
];

/// Paths below which some of them are still to be replaced, with the words. Rows shrink, and none is added.
const REMAINING: &[(&str, &[&str])] = &[
    (
        "dataplane/daemon/",
        &["anew", "barred", "knocks", "patience"],
    ),
    (
        "dataplane/driver/",
        &["anew", "in vain", "lent", "mend", "patience"],
    ),
    (
        "dataplane/forward/",
        &[
            "anew",
            "believe",
            "believed",
            "believes",
            "door",
            "in vain",
            "let_go",
            "stranger",
            "strangers",
        ],
    ),
    ("docs/metrics.md", &["believed"]),
    ("proto/files/", &["anew"]),
    ("proto/shm/", &["believed", "believes", "farewell"]),
    ("proto/wire/", &["strangers"]),
];

/// Sources and documents, without this room and the change log, which quotes what was.
fn prose() -> Vec<String> {
    let suffixes = [".rs", ".md", ".toml", ".yml", ".sh", ".service"];
    let mut files = files();
    files.retain(|file| {
        suffixes.iter().any(|suffix| file.ends_with(suffix))
            && !file.starts_with("tests/tidy/")
            && !["CHANGELOG.md", "docs/glossary.md"].contains(&file.as_str())
    });
    files
}

/// Lower case, with identifiers in capitals and camel case cut into words by underscores.
fn normalized(line: &str) -> String {
    let mut text = String::with_capacity(line.len() + 16);
    let mut before = ' ';
    for c in line.chars() {
        if c.is_ascii_uppercase() && before.is_ascii_lowercase() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
        before = c;
    }
    text
}

/// Whether a line has the word: not as part of a longer one. Names of metrics stay as they are.
fn has(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        let metric = before
            .rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .next()
            .is_some_and(|start| start.starts_with("hyphae_"));
        let ends = !before.ends_with(|c: char| c.is_ascii_alphanumeric())
            && !after.starts_with(|c: char| c.is_ascii_alphanumeric());
        ends && !metric
    })
}

#[test]
fn replaced_words_do_not_come_back() {
    let (mut offenders, mut needed) = (Vec::new(), BTreeSet::new());
    for file in prose() {
        let mut remaining = |word: &'static str| {
            let mut rows = REMAINING.iter().filter(|(path, _)| file.starts_with(path));
            let row = rows.find(|(_, words)| words.contains(&word));
            row.is_some_and(|(path, _)| {
                needed.insert((*path, word));
                true
            })
        };
        let text = read(&file);
        for (n, line) in text.lines().enumerate() {
            let line = normalized(line);
            let found = REPLACED
                .iter()
                .filter(|(word, _)| has(&line, word) && !remaining(word));
            offenders
                .extend(found.map(|(word, term)| format!("{file}:{}: '{word}': {term}", n + 1)));
        }
    }
    let all = REMAINING
        .iter()
        .flat_map(|(path, words)| words.iter().map(move |word| (*path, *word)));
    let done = all.filter(|row| !needed.contains(row));
    offenders
        .extend(done.map(|(path, word)| format!("{path}: '{word}' is replaced; remove the row")));
    let list = offenders.join("\n  ");
    assert!(
        list.is_empty(),
        "use the terms of docs/glossary.md:\n  {list}"
    );
}

#[test]
fn words_are_found_in_prose_and_in_identifiers_only_as_a_whole() {
    for (line, word) in [
        ("// Two strangers knock.", "strangers"),
        ("let PATIENCE = 3;", "patience"),
        ("struct VigilPulse;", "vigil"),
        ("fn carry_out_all()", "carry_out"),
    ] {
        assert!(has(&normalized(line), word), "{line}");
    }
    for (line, word) in [
        ("an outdoor doorbell", "door"),
        ("silently", "lent"),
        ("hyphae_routing_put_off_total", "put_off"),
    ] {
        assert!(!has(&normalized(line), word), "{line}");
    }
}
