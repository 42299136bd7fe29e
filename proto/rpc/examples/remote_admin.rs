//! Lists the peers of another node over the bus. That node must list this one as an administrator.
//!
//! `cargo run -p hyphae-rpc --example remote_admin -- /run/hyphae/rpc.sock KEY`

#![forbid(unsafe_code)]

use hyphae_rpc::Client;
use hyphae_rpc::method::BusCallParams;

#[allow(clippy::print_stdout, reason = "an example")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(key)) = (arguments.next(), arguments.next()) else {
        return Err("usage: remote_admin RPC_SOCKET KEY".into());
    };
    let response = Client::new(socket).admin_bus_call(BusCallParams {
        dst_pubkey: Some(key),
        method: "getPeers".to_owned(),
        timeout_secs: Some(10),
        ..BusCallParams::default()
    })?;
    match (response.result, response.error) {
        (Some(peers), None) => println!("{peers}"),
        (_, Some(refused)) => return Err(format!("{} ({})", refused, refused.code).into()),
        (None, None) => return Err("neither result nor error".into()),
    }
    Ok(())
}
