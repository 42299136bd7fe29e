//! Covers: the committed OpenRPC document equals the one generated from the types.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

/// Writes the document instead of comparing it.
const REGENERATE: &str = "HYPHAE_WRITE_OPENRPC";

#[test]
fn the_committed_document_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openrpc.json");
    let mut made = serde_json::to_string_pretty(&hyphae_rpc::openrpc()).unwrap();
    made.push('\n');
    if std::env::var_os(REGENERATE).is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "docs/openrpc.json is not what the types make; \
         `{REGENERATE}=1 cargo test -p hyphae-rpc --test openrpc` writes it"
    );
}

#[test]
fn every_reference_resolves_and_every_error_is_explained() {
    let document = hyphae_rpc::openrpc();
    let text = document.to_string();
    let mut references = 0;
    for rest in text.split("\"$ref\":\"#").skip(1) {
        let pointer = rest.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
        references += 1;
    }
    assert!(references > 10);
    for method in document["methods"].as_array().unwrap() {
        for error in method["errors"].as_array().unwrap() {
            assert!(
                !error["message"].as_str().unwrap().is_empty(),
                "{}",
                error["code"]
            );
        }
    }
}
