//! Covers prefixes outside of the overlay: packets to and from what is behind a gateway, and who
//! may send what.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests; clippy excuses only the tests themselves"
)]

mod common;

use common::{Host, Line, NOW, Node, open_headers, receive_one, send};
use hyphae_forward::host::TunHeader;
use hyphae_forward::{ApplyError, HostVerdict, Verdict};
use hyphae_shm::record::{ACTION_GATEWAY, FibReplace, Program};
use hyphae_shm::stats::DropReason;
use hyphae_wire::{OverlayAddress, Prefix, Suite};
use zerocopy::FromZeros;

const SITE: &str = "fd12:3456::/48";

fn address(text: &str) -> OverlayAddress {
    text.parse::<std::net::Ipv6Addr>().unwrap().into()
}

fn entry(prefix: &str, gateway: OverlayAddress) -> FibReplace {
    let prefix: Prefix = prefix.parse().unwrap();
    FibReplace {
        prefix: prefix.address(),
        prefix_len: prefix.len(),
        action: ACTION_GATEWAY,
        gateway,
        ..FibReplace::new_zeroed()
    }
}

fn install(node: &mut Node, prefix: &str, gateway: OverlayAddress) {
    let record = entry(prefix, gateway);
    node.engine()
        .apply(NOW, &Program::FibReplace(&record))
        .unwrap();
}

/// The server is the gateway of [`SITE`], and the client sends to it.
fn line() -> Line {
    let mut line = Line::new(1, Suite::Aes256Gcm);
    let gateway = line.server.address;
    install(&mut line.client, SITE, gateway);
    install(&mut line.server, SITE, gateway);
    line
}

fn host_drop(node: &mut Node, packet: &[u8]) -> DropReason {
    let verdict = node.engine().route_host(NOW, &TunHeader::default(), packet);
    let HostVerdict::Drop(reason) = verdict else {
        panic!("{verdict:?}")
    };
    reason
}

/// What the relay makes of a frame, with the frame as it leaves.
fn relayed(line: &mut Line, from_client: bool, frame: &mut [u8]) {
    let from = if from_client {
        line.client.endpoint
    } else {
        line.server.endpoint
    };
    let verdict = receive_one(line.relay.engine(), NOW, from, frame);
    assert!(matches!(verdict, Verdict::Transmit(_)), "{verdict:?}");
}

#[test]
fn packets_reach_what_is_behind_a_gateway_and_come_back() {
    let mut line = line();
    let (client, host) = (line.client.address, address("fd12:3456::7"));
    let there = Host::udp(client, host).packet(100);
    let mut frame = send(line.client.engine(), NOW, &there);
    let headers = open_headers(&line.first[0][1], &frame);
    assert_eq!(headers.routing.destination, line.server.address);
    assert_eq!(headers.routing.source, client);
    relayed(&mut line, true, &mut frame);
    let relay = line.relay.endpoint;
    let verdict = receive_one(line.server.engine(), NOW, relay, &mut frame);
    assert!(matches!(verdict, Verdict::Deliver { .. }), "{verdict:?}");
    assert_eq!(frame[88 + 8..frame.len() - 16], there[8..]);

    let back = Host::udp(host, client).packet(100);
    let mut frame = send(line.server.engine(), NOW, &back);
    let headers = open_headers(&line.second[0][0], &frame);
    assert_eq!(headers.routing.source, line.server.address);
    relayed(&mut line, false, &mut frame);
    let verdict = receive_one(line.client.engine(), NOW, relay, &mut frame);
    assert!(matches!(verdict, Verdict::Deliver { .. }), "{verdict:?}");
}

#[test]
fn hosts_send_only_from_and_to_what_is_announced() {
    let mut line = line();
    let (client, server) = (line.client.address, line.server.address);
    let site = address("fd12:3456::7");
    let other = address("fd12:9999::7");
    // Not behind anybody.
    let packet = Host::udp(client, other).packet(10);
    assert_eq!(
        host_drop(&mut line.client, &packet),
        DropReason::TunDestinationForeign
    );
    // Behind the server, not behind this node.
    let packet = Host::udp(site, server).packet(10);
    assert_eq!(
        host_drop(&mut line.client, &packet),
        DropReason::TunSourceForeign
    );
    // What is behind this node itself is the host's business.
    let packet = Host::udp(server, site).packet(10);
    assert_eq!(
        host_drop(&mut line.server, &packet),
        DropReason::TunDestinationForeign
    );
}

#[test]
fn nobody_speaks_for_a_prefix_that_is_anothers() {
    let mut line = line();
    let (client, server) = (line.client.address, line.server.address);
    let site = address("fd12:3456::7");
    // The client believes to be the gateway; the server knows better.
    install(&mut line.client, SITE, client);
    let mut frame = send(
        line.client.engine(),
        NOW,
        &Host::udp(site, server).packet(10),
    );
    relayed(&mut line, true, &mut frame);
    let relay = line.relay.endpoint;
    let verdict = receive_one(line.server.engine(), NOW, relay, &mut frame);
    assert_eq!(verdict, Verdict::Drop(DropReason::SourceSpoofed));
    // The client believes that more is behind the server than there is.
    install(&mut line.client, "fd12:9999::/32", server);
    let beyond = Host::udp(client, address("fd12:9999::7")).packet(10);
    let mut frame = send(line.client.engine(), NOW, &beyond);
    relayed(&mut line, true, &mut frame);
    let verdict = receive_one(line.server.engine(), NOW, relay, &mut frame);
    assert_eq!(verdict, Verdict::Drop(DropReason::DestinationMismatch));
}

#[test]
fn entries_that_would_capture_the_overlay_are_refused() {
    let mut line = line();
    let server = line.server.address;
    for (prefix, gateway) in [
        ("400:1::/64", server),
        ("::/0", server),
        (SITE, address("fd12::1")),
    ] {
        let record = entry(prefix, gateway);
        let result = line
            .client
            .engine()
            .apply(NOW, &Program::FibReplace(&record));
        assert_eq!(result, Err(ApplyError::Malformed), "{prefix}");
    }
}
