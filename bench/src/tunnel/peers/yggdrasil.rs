//! Yggdrasil: the ends peer with the relay over TCP, its usual transport.

use std::net::IpAddr;
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};

use super::super::underlay::Place;
use super::node::{Nodes, find, output_of};

const PORT: u16 = 9001;

pub(super) fn start() -> anyhow::Result<Nodes> {
    let binary = find("yggdrasil", "apt-get install yggdrasil")?;
    let mut nodes = Nodes::new("yggdrasil", [IpAddr::from([0; 4]); 3])?;
    nodes.ask_version(&binary, "-version");
    for place in Place::ALL {
        let generated = output_of(Command::new(&binary).args(["-genconf", "-json"]))?;
        let mut settings: Value = serde_json::from_str(&generated).context("its configuration")?;
        if place == Place::Relay {
            settings["Listen"] = json!([format!("tcp://0.0.0.0:{PORT}")]);
        } else {
            settings["Peers"] = json!([format!("tcp://{}:{PORT}", place.relay_at())]);
        }
        settings["MulticastInterfaces"] = json!([]);
        settings["AdminListen"] = json!("none");
        settings["IfName"] = json!("yggdrasil");
        let file = nodes.home(place)?.join("yggdrasil.conf");
        std::fs::write(&file, settings.to_string())?;
        let mut address = Command::new(&binary);
        let address = output_of(address.arg("-useconffile").arg(&file).arg("-address"))?;
        nodes.set_address(place, address.parse().context("its address")?);
    }
    // The relay first, so that the ends connect at the first attempt.
    let order = [Place::Relay, Place::Client, Place::Server];
    nodes.start(order, move |nodes, place| {
        let mut command = Command::new(&binary);
        let file = nodes.home(place)?.join("yggdrasil.conf");
        command.arg("-useconffile").arg(file);
        nodes.spawn(place, command)?;
        nodes.wait_for_device(place, "yggdrasil")
    })?;
    Ok(nodes)
}
