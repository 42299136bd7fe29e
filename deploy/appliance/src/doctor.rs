//! `hyphae doctor`: checks that this host is ready to run a node; names the reason and the fix of each problem.
//!
//! [`facts`] reads the state of the host. [`checks`] evaluates it: a pure function of the facts, so tests run it on
//! synthetic hosts. What cannot be read is reported as unknown and does not affect the exit code.

mod checks;
mod facts;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::cli::{self, NodeArgs};

/// Flags of `hyphae doctor`: those of the node to check for.
#[derive(Clone, Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    node: NodeArgs,
}

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Nothing to do.
    Ok,
    /// Not readable.
    Unknown,
    /// The node runs, with reduced performance or function.
    Warn,
    /// The node does not run, or not as configured.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// Name of the check.
    pub(crate) name: &'static str,
    /// Result.
    pub(crate) level: Level,
    /// What was found.
    pub(crate) found: String,
    /// Why it matters; empty when there is nothing to do.
    pub(crate) why: String,
    /// Suggested fix; empty when there is nothing to do.
    pub(crate) fix: String,
}

/// Runs the checks and prints them. Exit codes: 0 nothing to do, 1 a warning, 2 a failure.
pub(crate) fn run(args: &DoctorArgs, json: bool) -> anyhow::Result<ExitCode> {
    let (config, refused) = match args.node.load() {
        Ok(config) => (config, None),
        // The other checks assume the defaults.
        Err(error) => {
            let default = hyphae_config::Settings::default();
            (default.config()?, Some(format!("{error:#}")))
        }
    };
    let mut facts = facts::collect(&config, &args.node)?;
    facts.configuration = refused;
    let checks = checks::evaluate(&facts);
    let worst = checks.iter().map(|check| check.level).max();
    if json {
        cli::document(&json!({ "worst": worst, "checks": checks }))?;
    } else {
        checks.iter().try_for_each(show)?;
    }
    Ok(match worst {
        Some(Level::Fail) => ExitCode::from(2),
        Some(Level::Warn) => ExitCode::from(1),
        Some(Level::Ok | Level::Unknown) | None => ExitCode::SUCCESS,
    })
}

fn show(check: &Check) -> std::io::Result<()> {
    let word = match check.level {
        Level::Ok => "ok  ",
        Level::Unknown => "?   ",
        Level::Warn => "WARN",
        Level::Fail => "FAIL",
    };
    cli::line(format_args!("{word}  {:<15}  {}", check.name, check.found))?;
    for (word, text) in [("why", &check.why), ("fix", &check.fix)] {
        if !text.is_empty() {
            cli::line(format_args!("      {word:<15}  {text}"))?;
        }
    }
    Ok(())
}
