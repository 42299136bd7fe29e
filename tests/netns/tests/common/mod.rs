//! What the process tests share: the binary, the privilege check, waiting.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The `hyphae` binary, built if needed with the profile of this test.
pub(crate) fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| {
            let deps = std::env::current_exe().unwrap();
            let profile = deps
                .parent()
                .and_then(|deps| deps.parent())
                .unwrap()
                .to_owned();
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--quiet", "--package", "hyphae", "--bin", "hyphae"]);
            if profile.ends_with("release") {
                build.arg("--release");
            }
            let status = build
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .unwrap();
            assert!(status.success(), "the binary builds");
            profile.join("hyphae")
        })
        .clone()
}

/// Waits until `done` holds.
pub(crate) fn eventually(what: &str, timeout: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !done() {
        assert!(Instant::now() < deadline, "in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
