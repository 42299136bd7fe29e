//! `hyphae doctor`: what this host lacks for a node, why that matters, and what to do about it.
//!
//! [`readings`] looks, [`checks`] judges what was found: a function of readings alone, which tests call
//! with hosts that they make up. What cannot be looked at is said to be so and counts for nothing.

mod checks;
mod readings;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::cli::{self, NodeArgs};

/// Flags of `hyphae doctor`: those of the node that is to run.
#[derive(Clone, Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    node: NodeArgs,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Nothing to do.
    Ok,
    /// It could not be looked at.
    Unknown,
    /// The node runs, worse than it could.
    Warn,
    /// The node does not run, or not as configured.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was looked at.
    pub(crate) name: &'static str,
    /// How it came out.
    pub(crate) level: Level,
    /// What was found.
    pub(crate) found: String,
    /// Why it matters; empty where all is well.
    pub(crate) why: String,
    /// What to do; empty where all is well.
    pub(crate) fix: String,
}

/// Looks, judges, shows. Exit codes: 0 nothing to do, 1 a warning, 2 a failure.
pub(crate) fn run(args: &DoctorArgs, json: bool) -> anyhow::Result<ExitCode> {
    let (config, refused) = match args.node.load() {
        Ok(config) => (config, None),
        // The rest is judged for a node with defaults.
        Err(error) => {
            let default = hyphae_config::Settings::default();
            (default.config()?, Some(format!("{error:#}")))
        }
    };
    let mut readings = readings::take(&config, &args.node)?;
    readings.configuration = refused;
    let checks = checks::judge(&readings);
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
