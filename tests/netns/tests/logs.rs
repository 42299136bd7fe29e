//! Covers: nodes that log all there is to log, while they make sessions, carry packets and messages and
//! answer calls. Neither keys nor payloads are in what they say, in no form that a program prints bytes
//! in. JSON logs are JSON, peers have the names of the list, and levels are what the file says.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

use common::mesh::Mesh;
use common::{TIMEOUT, eventually, privileged};
use hyphae_rpc::Base64;
use hyphae_rpc::method::{Destination, OutgoingMessage, PopMessageParams, PushMessageParams};
use serde_json::Value;

/// The forms in which bytes may come into a text.
fn forms(bytes: &[u8]) -> Vec<String> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = |separator: &str, hex: bool| -> String {
        let one = |byte: &u8| match hex {
            true => format!("0x{byte:02x}"),
            false => byte.to_string(),
        };
        bytes.iter().map(one).collect::<Vec<_>>().join(separator)
    };
    let spaced: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    // Inside a longer text, base64 may begin at any of three places; its ends depend on neighbours.
    let base64 = (0..3).map(|skip| {
        let mut shifted = vec![0; skip];
        shifted.extend(bytes);
        let text = Base64::encode(&shifted);
        text[4..text.len() - 6].to_owned()
    });
    let mut all = vec![
        hex.to_uppercase(),
        hex,
        list(", ", false),
        list(",", false),
        list(", ", true),
        spaced.join(" "),
        spaced.join(":"),
        bytes.escape_ascii().to_string(),
    ];
    all.extend(base64);
    all.extend(std::str::from_utf8(bytes).map(str::to_owned));
    all
}

#[test]
fn a_node_that_logs_everything_tells_neither_keys_nor_payloads() {
    if !privileged() {
        return;
    }
    let mut mesh = Mesh::new(3, &[(0, 1), (1, 2)]);
    let network = tempfile::tempdir().unwrap();
    let network_key = network.path().join("garden.key");
    let network_secret = "c0ffee5a".repeat(8);
    std::fs::write(&network_key, &network_secret).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&network_key, private).unwrap();
    let config = |n: usize| {
        let allow = |n: usize| format!("{{ key = \"{}\", name = \"bed {n}\" }}", mesh.keys[n]);
        let all: Vec<_> = (0..3).map(allow).collect();
        let (json, key) = (if n == 1 { "json" } else { "text" }, network_key.display());
        format!(
            "log_level = \"trace\"\n[log]\nformat = \"{json}\"\n[session]\nrekey_after_seconds = 2\n\
             [network]\nname = \"garden\"\nkey_file = \"{key}\"\n[peering]\nallow = [{}]\n",
            all.join(", ")
        )
    };
    let configs: Vec<_> = (0..3).map(config).collect();
    for (n, config) in configs.iter().enumerate() {
        mesh.start_with(n, config);
    }
    let far = mesh.node(2).address();
    eventually("the ends reach each other", TIMEOUT, || {
        mesh.node(0).ping(far, Duration::from_secs(1)).is_ok()
    });

    // A packet and a message across the relay, each with bytes that nothing else has.
    let packet = *b"Uncommon-Words-In-A-Packet-4711!";
    let body = *b"Singular-Words-In-A-Message-0815";
    let receiver = mesh.namespaces[2]
        .run(move || UdpSocket::bind((far, 0)))
        .unwrap()
        .unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let sender = mesh.namespaces[0].run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)));
    let sender = sender.unwrap().unwrap();
    let mut received = [0; 64];
    eventually("the packet arrives", TIMEOUT, || {
        let to = receiver.local_addr().unwrap();
        sender.send_to(&packet, to).unwrap();
        receiver
            .recv(&mut received)
            .is_ok_and(|len| received[..len] == packet)
    });
    let message = OutgoingMessage {
        dst: Destination::Pk(mesh.keys[2].to_string()),
        topic: None,
        payload: Base64(body.to_vec()),
    };
    let params = PushMessageParams {
        message,
        reply_timeout: None,
        wait: None,
    };
    mesh.node(0).client.push_message(params).unwrap();
    let params = PopMessageParams {
        timeout: Some(60),
        ..PopMessageParams::default()
    };
    let popped = mesh.node(2).client.pop_message(params).unwrap().unwrap();
    assert_eq!(popped.payload.0, body);
    // Until sessions have been renewed, too.
    eventually("the relay's links have new keys", TIMEOUT, || {
        let text = common::scrape(&mesh.namespaces[1]);
        let line = "hyphae_rekeys_total{kind=\"link\"} ";
        let renewed = text.lines().find_map(|other| other.strip_prefix(line));
        renewed.is_some_and(|renewed| renewed.parse::<u64>().unwrap() >= 2)
    });

    let mut secrets = vec![
        ("a packet", forms(&packet)),
        ("a message", forms(&body)),
        ("the network's key as text", vec![network_secret.clone()]),
        (
            "the network's key",
            forms(&[0xc0, 0xff, 0xee, 0x5a].repeat(8)),
        ),
    ];
    for n in 0..3 {
        let key = std::fs::read(mesh.node(n).directory().join("priv_key.bin")).unwrap();
        secrets.push(("an identity", forms(&key)));
    }
    // Each is read when nobody writes there any more.
    for n in 0..3 {
        assert!(mesh.nodes[n].as_mut().unwrap().stop().unwrap());
    }
    for n in 0..3 {
        let log = mesh.node(n).log();
        assert!(log.contains("TRACE"), "it does log everything");
        for (what, forms) in &secrets {
            for form in forms {
                assert!(
                    !log.contains(form.as_str()),
                    "{what} as {form} is in the log of node {n}"
                );
            }
        }
    }

    let text = mesh.node(0).log();
    let up = text
        .lines()
        .find(|line| line.contains("peer is up"))
        .unwrap();
    assert!(
        up.contains(&mesh.keys[1].to_string()) && up.contains("bed 1"),
        "{up}"
    );
    let json = mesh.node(1).log();
    let lines: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let up = lines
        .iter()
        .find(|line| line["message"] == "peer is up")
        .unwrap();
    assert!(up["name"].as_str().unwrap().starts_with("bed "), "{up}");
    assert_eq!(up["level"], "INFO");
}
