//! Covers: file and line lengths, where `unsafe` may be, manifests, the documentation's claims
//! about files, words that do not belong here. Lints cover the code itself.

use std::collections::BTreeSet;

use hyphae_test_tidy::{files, read, root};

const LINES_MAX: usize = 600;
/// Of test files.
const TEST_LINES_MAX: usize = 800;
const MAIN_LINES_MAX: usize = 60;
/// Comments are wrapped by hand; code is rustfmt's, which leaves macros and long strings alone.
const COMMENT_COLUMNS_MAX: usize = 120;
const COLUMNS_MAX: usize = 140;
const UNSAFE_ROOMS: [&str; 3] = ["proto/shm/", "dataplane/aead/", "dataplane/driver/"];
const TOP_LEVEL: [&str; 12] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "docs",
    "dataplane",
    "controlplane",
    "proto",
    "bench",
    "tests",
    "deploy",
];

fn sources() -> Vec<String> {
    files()
        .into_iter()
        .filter(|file| file.ends_with(".rs"))
        .collect()
}

fn assert_none(offenders: Vec<String>, rule: &str) {
    assert!(
        offenders.is_empty(),
        "{rule}:\n  {}",
        offenders.join("\n  ")
    );
}

#[test]
fn files_and_lines_are_short() {
    let mut offenders = Vec::new();
    for file in sources() {
        let text = read(&file);
        let test =
            file.starts_with("tests/") || file.contains("/tests/") || file.ends_with("/tests.rs");
        let most = if file.ends_with("main.rs") {
            MAIN_LINES_MAX
        } else if test {
            TEST_LINES_MAX
        } else {
            LINES_MAX
        };
        if text.lines().count() > most {
            offenders.push(format!(
                "{file}: {} lines, at most {most}",
                text.lines().count()
            ));
        }
        for (n, line) in text.lines().enumerate() {
            let comment = line.trim_start().starts_with("//");
            let most = if comment {
                COMMENT_COLUMNS_MAX
            } else {
                COLUMNS_MAX
            };
            if line.chars().count() > most {
                offenders.push(format!("{file}:{}: over {most} columns", n + 1));
            }
        }
    }
    assert_none(offenders, "files and lines have limits");
}

#[test]
fn unsafe_stays_in_its_rooms() {
    let mut offenders = Vec::new();
    for file in sources()
        .into_iter()
        .filter(|file| !UNSAFE_ROOMS.iter().any(|room| file.starts_with(room)))
    {
        let text = read(&file);
        let used = ["unsafe {", "unsafe fn", "unsafe impl"]
            .iter()
            .any(|word| text.contains(word));
        if used && !file.starts_with("tests/tidy/") {
            offenders.push(format!("{file}: unsafe code"));
        }
        let is_root = file.ends_with("src/lib.rs") || file.ends_with("src/main.rs");
        if is_root && !text.contains("#![forbid(unsafe_code)]") {
            offenders.push(format!("{file}: does not forbid unsafe code"));
        }
    }
    assert_none(
        offenders,
        "unsafe code lives in proto/shm, dataplane/aead and dataplane/driver only",
    );
}

#[test]
fn nothing_is_left_for_later() {
    let words = ["todo!", "unimplemented!", "FIXME", "TODO", "#[ignore"];
    let found = sources()
        .into_iter()
        .filter(|file| !file.starts_with("tests/tidy/"))
        .filter(|file| {
            let text = read(file);
            words.iter().any(|word| text.contains(word))
        });
    assert_none(
        found.collect(),
        "finish it, or write down in an issue what is missing",
    );
}

#[test]
fn manifests_share_what_is_shared() {
    let mut offenders = Vec::new();
    for file in files()
        .into_iter()
        .filter(|file| file.ends_with("/Cargo.toml") && !file.contains("libfuzzer"))
    {
        let text = read(&file);
        for line in [
            "version.workspace = true",
            "edition.workspace = true",
            "license.workspace = true",
            "[lints]\nworkspace = true",
        ] {
            if !text.contains(line) {
                offenders.push(format!("{file}: lacks `{}`", line.replace('\n', " ")));
            }
        }
    }
    assert_none(
        offenders,
        "packages take version, edition, licence and lints of the workspace",
    );
}

#[test]
fn every_dependency_is_explained() {
    let (manifest, document) = (read("Cargo.toml"), read("docs/dependencies.md"));
    let table = manifest.split("[workspace.dependencies]").nth(1).unwrap();
    let names = table
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split([' ', '=']).next());
    let unexplained = names
        .filter(|name| !name.is_empty() && !name.starts_with("hyphae") && !name.starts_with('#'))
        .filter(|name| !document.contains(&format!("`{name}`")));
    assert_none(
        unexplained.map(str::to_owned).collect(),
        "docs/dependencies.md says why each is here",
    );
}

#[test]
fn paths_named_in_documents_exist() {
    let rooms = [
        "dataplane/",
        "controlplane/",
        "proto/",
        "bench/",
        "tests/",
        "deploy/",
        "docs/",
        "internals/",
    ];
    let mut offenders = Vec::new();
    for file in files()
        .into_iter()
        .filter(|file| file.ends_with(".md") && file != "CHANGELOG.md")
    {
        let text = read(&file);
        let quoted = text.split('`').skip(1).step_by(2);
        let linked = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#']).next());
        for path in quoted.chain(linked) {
            let plain = path
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if plain && rooms.iter().any(|room| path.starts_with(room)) {
                let beside = root().join(&file).parent().unwrap().join(path);
                if !root().join(path).exists() && !beside.exists() {
                    offenders.push(format!("{file}: {path}"));
                }
            }
        }
    }
    assert_none(offenders, "documents name files that do not exist");
}

/// Names of tests state behaviour; the number of a requirement may stand in a comment.
#[test]
fn no_function_is_named_after_a_number() {
    let mut offenders = Vec::new();
    for file in sources()
        .into_iter()
        .filter(|file| !file.starts_with("tests/tidy/"))
    {
        for line in read(&file).lines() {
            let name = line.split("fn item_").nth(1).unwrap_or_default();
            if name.starts_with(|c: char| c.is_ascii_digit()) {
                offenders.push(format!("{file}: {}", line.trim()));
            }
        }
    }
    assert_none(offenders, "functions are named after what they do");
}

#[test]
fn every_package_has_a_row_in_the_architecture() {
    let (manifest, document) = (read("Cargo.toml"), read("docs/architecture.md"));
    let members = manifest.split("members = [").nth(1).unwrap();
    let members = members.split(']').next().unwrap();
    let missing = members.split('"').skip(1).step_by(2).filter(|member| {
        // Test packages and benches share a row.
        let room = match member.split('/').next() {
            Some(room @ ("tests" | "bench")) => room,
            _ => member,
        };
        !document.contains(&format!("| `{room}` |"))
    });
    let missing = missing.map(str::to_owned).collect();
    assert_none(missing, "docs/architecture.md has a row for every package");
}

#[test]
fn the_top_level_is_the_owners() {
    let top: BTreeSet<_> = files()
        .iter()
        .filter_map(|file| file.split('/').next().map(str::to_owned))
        .collect();
    let offenders = top
        .into_iter()
        .filter(|entry| !entry.starts_with('.') && !TOP_LEVEL.contains(&entry.as_str()));
    assert_none(offenders.collect(), "the top level is given");
}

#[test]
fn no_path_of_a_build_machine_is_written_down() {
    let words = ["/wo", "/ro"]
        .map(|start| format!("{start}{}", if start == "/wo" { "rk/" } else { "ot/" }));
    let found = files()
        .into_iter()
        .filter(|file| file != "Cargo.lock")
        .filter(|file| {
            let text = read(file);
            words.iter().any(|word| text.contains(word.as_str()))
        });
    assert_none(found.collect(), "paths of somebody's machine");
}
