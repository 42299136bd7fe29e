//! Programs that are run inside of namespaces.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use hyphae::lab::Namespace;

/// Runs a command in a namespace to its end; an error if it fails.
pub(crate) fn run_in(namespace: &Namespace, mut command: Command) -> anyhow::Result<String> {
    let line = format!("{command:?}");
    command.stdin(Stdio::null());
    let output = namespace
        .run(move || command.output())?
        .with_context(|| format!("cannot run {line}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{line}: {}: {}",
        output.status,
        said.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `ip` of iproute2 with these words, in a namespace.
pub(crate) fn ip(namespace: &Namespace, words: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(words.split(' '));
    run_in(namespace, command).context("iproute2 is needed")?;
    Ok(())
}
