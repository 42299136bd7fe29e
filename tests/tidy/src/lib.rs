//! Rules about the tree itself, held by `tests/*.rs`: sizes, where `unsafe` may be, manifests,
//! documents. Everything else is tested beside its code or in the other packages of this folder.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Top of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Files that git tracks or would track, sorted.
///
/// # Panics
/// When git is not installed.
#[allow(clippy::expect_used, reason = "for tests")]
pub fn files() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let all: BTreeSet<_> = text.lines().map(str::to_owned).collect();
    all.into_iter()
        .filter(|file| root().join(file).exists())
        .collect()
}

/// Text of a file of the repository; empty when it is not text.
pub fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_default()
}
