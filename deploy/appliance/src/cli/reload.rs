//! `hyphae reload`: applies the configuration file to a running node.

use clap::Args;
use hyphae_rpc::method::{ConfigChange, ReloadParams};

use super::{NodeRef, output};

#[derive(Clone, Debug, Args)]
pub(crate) struct ReloadArgs {
    /// Print the changes without applying them.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    node: NodeRef,
}

pub(crate) fn run(args: &ReloadArgs, json: bool) -> anyhow::Result<()> {
    let dry_run = args.dry_run;
    let result = args.node.client().config_reload(ReloadParams { dry_run })?;
    if json {
        return output::document(&result);
    }
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(not set)".to_owned());
    let show = |change: &ConfigChange| {
        let (old, new) = (shown(&change.old), shown(&change.new));
        output::line(format_args!("  {}: {old} → {new}", change.key))
    };
    match (result.applied.is_empty(), dry_run) {
        (true, _) => output::line("nothing to change live"),
        (false, true) => output::line("would change:"),
        (false, false) => output::line("changed:"),
    }?;
    result.applied.iter().try_for_each(show)?;
    if !result.restart.is_empty() {
        output::line("needs a restart of the node:")?;
        result.restart.iter().try_for_each(show)?;
    }
    Ok(())
}
