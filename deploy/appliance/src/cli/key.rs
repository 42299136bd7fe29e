//! `hyphae key`: the key of the node and keys of private networks.

use std::path::PathBuf;

use anyhow::bail;
use clap::Subcommand;
use hyphae_store::files;
use hyphae_wire::PublicKey;
use serde_json::json;

use super::{NodeRef, output};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Generate the key of the node; fails when one exists.
    #[command(
        after_help = "Examples:\n  hyphae key generate\n  hyphae key generate --state-dir ./node --force"
    )]
    Generate {
        #[command(flatten)]
        node: NodeRef,
        /// Replace an existing key; the address of the node changes.
        #[arg(long)]
        force: bool,
    },
    /// Generate the key of a private network; every member needs a copy of the file.
    #[command(after_help = "Examples:\n  hyphae key network garden.key\n  \
        hyphae up --network garden --network-key garden.key")]
    Network {
        /// Output file; must not exist.
        file: PathBuf,
    },
    /// Show the public key, address and subnet of the node.
    #[command(
        after_help = "Examples:\n  hyphae key show\n  hyphae key show --state-dir ./node --json"
    )]
    Show {
        #[command(flatten)]
        node: NodeRef,
    },
}

pub(crate) fn run(command: KeyCommand, json: bool) -> anyhow::Result<()> {
    match command {
        KeyCommand::Generate { node, force } => {
            let directory = files::prepare_directory(&node.state_directory()?)?;
            show(files::generate_key(&directory, force)?.public_key(), json)
        }
        KeyCommand::Network { file } => {
            hyphae_store::network_key::generate(&file)?;
            if json {
                return output::document(&json!({ "file": file }));
            }
            output::line(format_args!(
                "{} holds the key: keep it secret",
                file.display()
            ))?;
            Ok(())
        }
        KeyCommand::Show { node } => {
            let directory = node.state_directory()?;
            match files::read_key(&directory)? {
                Some(key) => show(key.public_key(), json),
                None => bail!(
                    "no key in {}: `hyphae key generate` or `hyphae up` generates one",
                    directory.display()
                ),
            }
        }
    }
}

fn show(key: PublicKey, json: bool) -> anyhow::Result<()> {
    let (address, subnet) = (key.address(), key.address().subnet());
    if json {
        let document = json!({ "publicKey": key, "address": address, "subnet": subnet });
        return output::document(&document);
    }
    output::line(format_args!("key      {key}"))?;
    output::line(format_args!("address  {address}"))?;
    output::line(format_args!("subnet   {subnet}"))?;
    Ok(())
}
