//! WireGuard in user space: wireguard-go, boringtun. The relay is a peer of both ends, and its kernel
//! forwards between them; they are configured through their sockets.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::ensure;
use hyphae_wire::SecretKey;

use super::super::underlay::{Place, forward};
use super::node::{Nodes, find};
use crate::command::ip;

const PORT: u16 = 51_820;

/// Unique device names: the sockets share one directory.
fn device(place: Place) -> String {
    format!("hyphae-wg{}", place.number())
}

pub(super) fn start(program: &'static str) -> anyhow::Result<Nodes> {
    let hint = match program {
        "wireguard-go" => "apt-get install wireguard-go",
        _ => "cargo install boringtun-cli",
    };
    let binary = find(program, hint)?;
    let number = |n: u8| -> anyhow::Result<IpAddr> { Ok(format!("fd77::{n}").parse()?) };
    let addresses = [number(1)?, number(2)?, number(3)?];
    let mut nodes = Nodes::new(program, addresses)?;
    nodes.ask_version(&binary, "--version");
    let secrets = [
        SecretKey::generate()?,
        SecretKey::generate()?,
        SecretKey::generate()?,
    ];
    nodes.start(Place::ALL, move |nodes, place| {
        let device = device(place);
        let mut command = Command::new(&binary);
        command.arg("-f");
        if program == "boringtun-cli" {
            command.arg("--disable-drop-privileges");
        }
        command.arg(&device).env("WG_PROCESS_FOREGROUND", "1");
        nodes.spawn(place, command)?;
        let path = format!("/var/run/wireguard/{device}.sock");
        let mut socket = nodes.wait(place, "socket", |_| Ok(UnixStream::connect(&path).ok()))?;
        socket.write_all(settings(place, &secrets, &addresses).as_bytes())?;
        socket.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(
            answer.contains("errno=0"),
            "{program} refuses its settings: {answer}"
        );
        let (own, at) = (addresses[place.number()], nodes.at(place));
        ip(at, &format!("-6 addr add {own}/64 dev {device} nodad"))?;
        ip(at, &format!("link set {device} mtu 1420 up"))
    })?;
    forward(nodes.at(Place::Relay))?;
    Ok(nodes)
}

/// Configuration in the cross-platform user-space protocol of WireGuard.
fn settings(place: Place, secrets: &[SecretKey; 3], addresses: &[IpAddr; 3]) -> String {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let own = &secrets[place.number()];
    let mut text = format!(
        "set=1\nprivate_key={}\nlisten_port={PORT}\n",
        hex(own.as_bytes())
    );
    let mut peer = |other: Place, allowed: String, endpoint: Option<&str>| {
        let key = secrets[other.number()].public_key();
        text += &format!("public_key={}\nallowed_ip={allowed}\n", hex(&key.0));
        if let Some(ip) = endpoint {
            text += &format!("endpoint={ip}:{PORT}\npersistent_keepalive_interval=1\n");
        }
    };
    if place == Place::Relay {
        for end in [Place::Client, Place::Server] {
            peer(end, format!("{}/128", addresses[end.number()]), None);
        }
    } else {
        peer(Place::Relay, "fd77::/64".to_owned(), Some(place.relay_at()));
    }
    text + "\n"
}
