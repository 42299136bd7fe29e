//! tinc 1.0: the ends connect to the relay, which forwards between them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::underlay::Place;
use super::node::{Nodes, find, output_of};
use crate::command::ip;

const DEVICE: &str = "tinc";

pub(super) fn start() -> anyhow::Result<Nodes> {
    let binary = find("tincd", "apt-get install tinc")?;
    let number = |n: u8| -> anyhow::Result<IpAddr> { Ok(format!("fd78::{n}").parse()?) };
    let addresses = [number(1)?, number(2)?, number(3)?];
    let mut nodes = Nodes::new("tinc", addresses)?;
    nodes.ask_version(&binary, "--version");
    let mut hosts = Vec::new();
    for place in Place::ALL {
        let home = nodes.home(place)?;
        std::fs::create_dir(home.join("hosts"))?;
        let connect = match place {
            Place::Relay => "",
            Place::Client | Place::Server => "ConnectTo = relay\n",
        };
        let name = place.name();
        let settings =
            format!("Name = {name}\nInterface = {DEVICE}\nAddressFamily = ipv4\n{connect}");
        std::fs::write(home.join("tinc.conf"), settings)?;
        // Adds the public key to the node's host file.
        let mut keys = Command::new(&binary);
        output_of(keys.arg("-c").arg(&home).args(["-K", "2048"]))?;
        let public = std::fs::read_to_string(home.join("hosts").join(name))?;
        hosts.push((place, public));
    }
    for place in Place::ALL {
        let home = nodes.home(place)?;
        for (other, public) in &hosts {
            write_host(&home, place, *other, addresses[other.number()], public)?;
        }
    }
    nodes.start(Place::ALL, move |nodes, place| {
        let home = nodes.home(place)?;
        let mut command = Command::new(&binary);
        command.arg("-c").arg(&home).arg("-D");
        let pid_file: PathBuf = home.join("pid");
        command.arg(format!("--pidfile={}", pid_file.display()));
        nodes.spawn(place, command)?;
        nodes.wait_for_device(place, DEVICE)?;
        let at = nodes.at(place);
        ip(at, &format!("link set {DEVICE} up"))?;
        ip(
            at,
            &format!(
                "-6 addr add {}/64 dev {DEVICE} nodad",
                addresses[place.number()]
            ),
        )
    })?;
    Ok(nodes)
}

fn write_host(
    home: &Path,
    reader: Place,
    host: Place,
    address: IpAddr,
    public: &str,
) -> anyhow::Result<()> {
    let reach = match host {
        Place::Relay => format!("Address = {}\n", reader.relay_at()),
        Place::Client | Place::Server => String::new(),
    };
    let text = format!("{reach}Subnet = {address}/128\n{public}");
    Ok(std::fs::write(home.join("hosts").join(host.name()), text)?)
}
