//! Mycelium: the ends peer with the relay over TCP. Addresses are derived from keys as in Hyphae, so they are known
//! before the start.

use std::path::{Path, PathBuf};
use std::process::Command;

use hyphae_wire::SecretKey;

use super::super::underlay::Place;
use super::node::{Nodes, find};

const PORT: u16 = 9651;
const DEVICE: &str = "mycelium";

pub(super) fn start(named: Option<&Path>) -> anyhow::Result<Nodes> {
    let binary: PathBuf = match named {
        Some(named) => named.to_owned(),
        None => find("mycelium", "name a binary with --mycelium")?,
    };
    let secrets = [
        SecretKey::generate()?,
        SecretKey::generate()?,
        SecretKey::generate()?,
    ];
    let addresses = [0, 1, 2].map(|n: usize| secrets[n].public_key().address().ip().into());
    let mut nodes = Nodes::new("mycelium", addresses)?;
    nodes.ask_version(&binary, "--version");
    for place in Place::ALL {
        let home = nodes.home(place)?;
        let key = home.join("priv_key.bin");
        std::fs::write(&key, secrets[place.number()].as_bytes())?;
    }
    nodes.start(Place::ALL, move |nodes, place| {
        let home = nodes.home(place)?;
        let key = home.join("priv_key.bin");
        let mut command = Command::new(&binary);
        command.current_dir(&home).arg("--key-file").arg(&key);
        command.args([
            "--disable-peer-discovery",
            "--disable-quic",
            "--tun-name",
            DEVICE,
        ]);
        command.args(["--tcp-listen-port", &PORT.to_string()]);
        if place != Place::Relay {
            command.args(["--peers", &format!("tcp://{}:{PORT}", place.relay_at())]);
        }
        nodes.spawn(place, command)?;
        nodes.wait_for_device(place, DEVICE)
    })?;
    Ok(nodes)
}
