//! Babel packets: our codec and Wireshark's dissector against the same bytes. Round trips over
//! generated packets are tested beside the codec, hostile bytes in `tests/fuzz`.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "babel/dissector.rs"]
mod dissector;

use hyphae_test_golden::load;

/// Needs `tshark` (Debian and Ubuntu: `apt install tshark`).
#[test]
fn wireshark_reads_the_packets_as_they_are_meant() {
    let cases = load("babel");
    let packets: Vec<_> = cases.iter().map(|case| case.bytes("packet")).collect();
    let Some(frames) = dissector::dissect(&packets) else {
        eprintln!("SKIPPED: tshark is not installed, nobody checked the packets against Wireshark");
        return;
    };
    for (case, frame) in cases.iter().zip(&frames) {
        let expected: Vec<_> = case.text("tlvs").split(", ").collect();
        assert_eq!(dissector::names(frame), expected, "{}:\n{frame}", case.at());
        for complaint in [
            "Malformed",
            "Expert Info",
            "Unreassembled",
            "[Checksum: [incorrect",
        ] {
            assert!(!frame.contains(complaint), "{}:\n{frame}", case.at());
        }
        for piece in case.text("shown").split("; ") {
            assert!(frame.contains(piece), "{}: {piece}\n{frame}", case.at());
        }
    }
}

#[test]
fn wireshark_would_have_complained() {
    let hello = load("babel").remove(0).bytes("packet");
    let mut longer = hello.clone();
    longer[5] = 60;
    let Some(frames) = dissector::dissect(&[hello, longer]) else {
        eprintln!("SKIPPED: tshark is not installed");
        return;
    };
    assert!(!frames[0].contains("Malformed"), "{}", frames[0]);
    assert!(frames[1].contains("Malformed"), "{}", frames[1]);
}
