//! Wireshark's dissector as the judge of packets: writes a capture and reads what `tshark` says.

use std::io::Write;
use std::process::{Command, Stdio};

/// Port of Babel.
const PORT: u16 = 6696;
/// Link type of a capture whose packets begin with the IPv6 header.
const LINKTYPE_IPV6: u32 = 229;

/// What `tshark -V` prints for each packet, or nothing when there is no `tshark` here.
pub(crate) fn dissect(packets: &[Vec<u8>]) -> Option<Vec<String>> {
    if Command::new("tshark").arg("--version").output().is_err() {
        return None;
    }
    let mut child = Command::new("tshark")
        .args(["-n", "-V", "-r", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let capture = capture(packets);
    let writer = std::thread::spawn(move || input.write_all(&capture).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tshark failed: {errors}");
    let frames: Vec<String> = text
        .split("\nFrame ")
        .map(|frame| format!("Frame {}", frame.trim_start_matches("Frame ")))
        .collect();
    assert_eq!(frames.len(), packets.len(), "{text}");
    Some(frames)
}

/// Names of the Babel TLVs in what `tshark` printed, in order.
pub(crate) fn names(frame: &str) -> Vec<String> {
    let messages = frame
        .lines()
        .filter_map(|line| line.strip_prefix("    Message "));
    messages
        .map(|message| message.split(' ').next().unwrap().to_owned())
        .collect()
}

/// A pcap file with each packet in UDP over IPv6.
fn capture(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(0xa1b2_c3d4u32.to_le_bytes());
    file.extend([2, 0, 4, 0]);
    file.extend([0; 8]);
    file.extend(65_535u32.to_le_bytes());
    file.extend(LINKTYPE_IPV6.to_le_bytes());
    for (packet, second) in packets.iter().zip(0u32..) {
        let datagram = datagram(packet);
        let len = u32::try_from(datagram.len()).unwrap().to_le_bytes();
        file.extend(second.to_le_bytes());
        file.extend([0; 4]);
        file.extend([len, len].concat());
        file.extend(datagram);
    }
    file
}

fn datagram(payload: &[u8]) -> Vec<u8> {
    let source: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
    let destination: std::net::Ipv6Addr = "ff02::1:6".parse().unwrap();
    let addresses = [source.octets(), destination.octets()].concat();
    let len = u16::try_from(8 + payload.len()).unwrap();
    let udp = |checksum: u16| {
        let words = [PORT, PORT, len, checksum].map(u16::to_be_bytes);
        [&words.concat(), payload].concat()
    };
    let mut summed = addresses.clone();
    summed.extend(u32::from(len).to_be_bytes());
    summed.extend(17u32.to_be_bytes());
    summed.extend(udp(0));
    summed.resize(summed.len().next_multiple_of(2), 0);
    let words = summed
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend(len.to_be_bytes());
    ip.extend([17, 1]);
    ip.extend(addresses);
    ip.extend(udp(!u16::try_from(sum).unwrap()));
    ip
}
