//! Commands in network namespaces.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use hyphae::lab::Namespace;

/// Runs a command in a namespace and waits for it; an error if it fails.
pub(crate) fn run_in(namespace: &Namespace, mut command: Command) -> anyhow::Result<String> {
    let line = format!("{command:?}");
    command.stdin(Stdio::null());
    let output = namespace
        .run(move || command.output())?
        .with_context(|| format!("cannot run {line}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{line}: {}: {}",
        output.status,
        stderr.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs iproute2's `ip` with these arguments in a namespace.
pub(crate) fn ip(namespace: &Namespace, words: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(words.split(' '));
    run_in(namespace, command).context("iproute2 is needed")?;
    Ok(())
}
