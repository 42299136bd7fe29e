//! `hyphae config`: checks a file, shows settings, explains keys. None of it needs a running node.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use hyphae_config::keys::{self, Key};
use hyphae_config::{Overrides, Problem, Settings, page};
use hyphae_store::token::BearerToken;
use hyphae_store::{files, network_key};
use serde_json::json;

use super::{NodeArgs, NodeRef, output};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check a configuration file and report every problem. Exit codes: 0 none, 1 some, 2 the file
    /// cannot be read.
    #[command(
        after_help = "Examples:\n  hyphae config check\n  hyphae config check /etc/hyphae/hyphae.toml --json"
    )]
    Check(CheckArgs),
    /// Show the settings that a node started with the same flags would have, as TOML.
    #[command(
        after_help = "Examples:\n  hyphae config show --config /etc/hyphae/hyphae.toml\n  hyphae config show --diff\n  \
        hyphae config show --defaults > hyphae.toml"
    )]
    Show(Box<ShowArgs>),
    /// Explain a key: type, unit, default, range, whether a reload applies it.
    #[command(
        after_help = "Examples:\n  hyphae config explain session.lost_after_ms\n  hyphae config explain routing"
    )]
    Explain {
        /// Key or section; all keys without it.
        key: Option<String>,
    },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CheckArgs {
    /// The file [default: config.toml in the state directory].
    file: Option<PathBuf>,
    #[command(flatten)]
    node: NodeRef,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ShowArgs {
    /// The defaults, with comments.
    #[arg(long, conflicts_with = "diff")]
    defaults: bool,
    /// Only what differs from the defaults.
    #[arg(long)]
    diff: bool,
    #[command(flatten)]
    node: NodeArgs,
}

pub(crate) fn run(command: ConfigCommand, json: bool) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Check(args) => check(&args, json),
        ConfigCommand::Show(args) => show(&args, json).map(|()| ExitCode::SUCCESS),
        ConfigCommand::Explain { key } => explain(key.as_deref(), json).map(|()| ExitCode::SUCCESS),
    }
}

fn check(args: &CheckArgs, json: bool) -> anyhow::Result<ExitCode> {
    let path = match &args.file {
        Some(path) => path.clone(),
        None => args.node.state_directory()?.join(files::CONFIG_FILE),
    };
    let shown = path.display();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            output::error(&anyhow::anyhow!("{shown}: {error}"), json);
            return Ok(ExitCode::from(2));
        }
    };
    let problems = problems(&text, &path);
    if json {
        let ok = problems.is_empty();
        output::document(&json!({ "file": path, "ok": ok, "problems": problems }))?;
    } else if problems.is_empty() {
        output::line(format_args!("{shown}: all right"))?;
    } else {
        for problem in &problems {
            output::line(format_args!("{shown}: {problem}"))?;
        }
    }
    Ok(match problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Problems of a file and of the files that it refers to.
fn problems(text: &str, path: &Path) -> Vec<Problem> {
    let (settings, mut problems) = Settings::read(text, Some(path), &Overrides::default());
    problems.extend(super::up::external_problems(&settings));
    let Ok(config) = settings.config() else {
        return problems;
    };
    let mut add = |key: &str, error: String| {
        problems.push(Problem {
            line: None,
            key: key.to_owned(),
            message: error,
            suggestion: None,
        });
    };
    if let Some(network) = &config.peering.network
        && let Err(error) = network_key::read(&network.key_file)
    {
        add("network.key_file", error.to_string());
    }
    if let Some(file) = &config.rpc_token
        && let Err(error) = BearerToken::read(file)
    {
        add("rpc.token_file", error.to_string());
    }
    problems
}

fn show(args: &ShowArgs, json: bool) -> anyhow::Result<()> {
    if args.defaults && !json {
        output::line(page::default_file().trim_end())?;
        return Ok(());
    }
    let settings = match args.defaults {
        true => Settings::default(),
        false => args.node.settings()?,
    };
    if json {
        return output::document(&settings.to_json(args.diff));
    }
    let text = settings.to_toml(args.diff);
    if !text.is_empty() {
        output::line(text.trim_end())?;
    }
    Ok(())
}

fn explain(key: Option<&str>, json: bool) -> anyhow::Result<()> {
    let wanted: Vec<&Key> = match key {
        None => keys::KEYS_ALL.iter().collect(),
        Some(name) => {
            let name = name.trim_matches(['[', ']']);
            let matches = |key: &&Key| key.path == name || key.section() == name;
            keys::KEYS_ALL.iter().filter(matches).collect()
        }
    };
    if let (Some(name), true) = (key, wanted.is_empty()) {
        match keys::nearest(name).or_else(|| keys::nearest_section(name)) {
            Some(near) => bail!("there is no key '{name}'; did you mean `{near}`?"),
            None => bail!("there is no key '{name}'; `hyphae config explain` lists all"),
        }
    }
    if json {
        let all: Vec<_> = wanted.iter().map(|key| describe(key)).collect();
        return output::document(&all);
    }
    for (n, key) in wanted.iter().enumerate() {
        if n > 0 {
            output::line("")?;
        }
        output::line(key.path)?;
        let default = if key.default.is_empty() {
            "none"
        } else {
            key.default
        };
        output::line(format_args!("  value    {}", page::value(key)))?;
        output::line(format_args!("  default  {default}"))?;
        output::line(match key.live {
            true => "  change   live: `hyphae reload`, or SIGHUP",
            false => "  change   needs a restart of the node",
        })?;
        for line in page::wrapped(key.help) {
            output::line(format_args!("  {line}"))?;
        }
    }
    Ok(())
}

fn describe(key: &Key) -> serde_json::Value {
    json!({
        "key": key.path,
        "type": key.kind.name(),
        "unit": Some(key.unit).filter(|unit| !unit.is_empty()),
        "default": Some(key.default).filter(|default| !default.is_empty()),
        "min": key.range.map(|(low, _)| low),
        "max": key.range.map(|(_, high)| high),
        "values": key.allowed(),
        "live": key.live,
        "help": key.help,
    })
}
