//! Prints the state of a running node and its peers.
//!
//! ```sh
//! hyphae up --no-tun &
//! cargo run -p hyphae-rpc --example status -- /run/hyphae/rpc.sock
//! ```

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;

use hyphae_rpc::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args().nth(1);
    let client = Client::new(socket.unwrap_or_else(|| "/run/hyphae/rpc.sock".to_owned()));

    let status = client.node_status()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "key      {}", status.info.node_pubkey)?;
    writeln!(out, "address  {}", status.info.node_ip)?;
    writeln!(out, "version  {}, up {} s", status.version, status.uptime)?;
    match &status.dataplane {
        Some(plane) => writeln!(out, "workers  {} ({})", plane.workers.len(), plane.driver)?,
        None => writeln!(out, "no dataplane is attached")?,
    }
    for (reason, count) in &status.drops {
        writeln!(out, "dropped  {count} ({reason})")?;
    }
    for peer in client.get_peers()? {
        let rtt = peer.rtt_micros.map(|micros| micros as f64 / 1000.0);
        let rtt = rtt.map_or_else(String::new, |ms| format!("  {ms:.2} ms"));
        let endpoint = &peer.endpoint;
        writeln!(
            out,
            "peer     {}://{}  {}{rtt}",
            endpoint.proto, endpoint.socket_addr, peer.connection_state
        )?;
    }
    Ok(())
}
