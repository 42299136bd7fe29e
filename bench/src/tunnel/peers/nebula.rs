//! Nebula: the relay is lighthouse and relay of both ends.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use super::super::underlay::Place;
use super::node::{Nodes, find, output_of};

const PORT: u16 = 4242;
const INSTALL: &str = "apt-get install nebula";

pub(super) fn start() -> anyhow::Result<Nodes> {
    let (binary, cert) = (find("nebula", INSTALL)?, find("nebula-cert", INSTALL)?);
    let addresses = [1, 2, 3].map(|n| IpAddr::from([10, 77, 0, n]));
    let mut nodes = Nodes::new("nebula", addresses)?;
    nodes.ask_version(&binary, "-version");
    let home = nodes.home(Place::Relay)?;
    let authority = [home.join("ca.crt"), home.join("ca.key")];
    let [crt, key] = &authority;
    let mut ca = Command::new(&cert);
    output_of(
        ca.args(["ca", "-name", "bench", "-out-crt"])
            .arg(crt)
            .arg("-out-key")
            .arg(key),
    )?;
    for place in Place::ALL {
        let home = nodes.home(place)?;
        let mut sign = Command::new(&cert);
        sign.arg("sign")
            .arg("-ca-crt")
            .arg(crt)
            .arg("-ca-key")
            .arg(key);
        sign.args(["-name", place.name()]);
        sign.args(["-ip", &format!("{}/24", addresses[place.number()])]);
        sign.arg("-out-crt").arg(home.join("own.crt"));
        output_of(sign.arg("-out-key").arg(home.join("own.key")))?;
        let file = home.join("config.yml");
        std::fs::write(&file, settings(place, &home, crt, &addresses))?;
    }
    nodes.start(Place::ALL, move |nodes, place| {
        let mut command = Command::new(&binary);
        let file = nodes.home(place)?.join("config.yml");
        command.arg("-config").arg(file);
        nodes.spawn(place, command)?;
        nodes.wait_for_device(place, "nebula")
    })?;
    Ok(nodes)
}

fn settings(place: Place, home: &Path, authority: &Path, addresses: &[IpAddr; 3]) -> String {
    let relay = addresses[Place::Relay.number()];
    let (home, authority) = (home.display(), authority.display());
    let (role, hosts) = match place {
        Place::Relay => ("true", String::new()),
        Place::Client | Place::Server => {
            let at = place.relay_at();
            (
                "false",
                format!("static_host_map:\n  \"{relay}\": [\"{at}:{PORT}\"]\n"),
            )
        }
    };
    let (houses, relays) = match place {
        Place::Relay => (String::new(), String::new()),
        Place::Client | Place::Server => {
            let one = format!("    - \"{relay}\"\n");
            (format!("  hosts:\n{one}"), format!("  relays:\n{one}"))
        }
    };
    format!(
        "pki:\n  ca: {authority}\n  cert: {home}/own.crt\n  key: {home}/own.key\n{hosts}\
         lighthouse:\n  am_lighthouse: {role}\n  interval: 1\n{houses}\
         relay:\n  am_relay: {role}\n  use_relays: true\n{relays}\
         listen:\n  host: 0.0.0.0\n  port: {PORT}\n\
         tun:\n  dev: nebula\n  mtu: 1300\n\
         logging:\n  level: warning\n\
         firewall:\n  outbound:\n    - {{port: any, proto: any, host: any}}\n  \
         inbound:\n    - {{port: any, proto: any, host: any}}\n"
    )
}
