#![allow(clippy::unwrap_used, reason = "a test")]

use serde_json::json;

use super::*;
use crate::machine::Machine;
use crate::output::Measured;

fn document(bench: &str, rows: Vec<serde_json::Value>) -> Document {
    Document {
        bench: bench.to_owned(),
        date: "2026-01-01T00:00:00Z".to_owned(),
        machine: Machine::here(),
        rows,
    }
}

fn transit(forwarder: &str, train: usize, rate: f64) -> serde_json::Value {
    json!({
        "forwarder": forwarder, "payloadBytes": 64, "train": train, "millionPacketsPerSecond": rate,
        "gbitPerSecond": rate, "cpuNanosPerPacket": 1000.0 / rate, "machineNanosPerPacket": 1.0,
        "busy": 1.0, "arrived": 1.0, "ratio": 1.0,
    })
}

fn measured(what: &str, of: &str, size: usize, value: f64) -> serde_json::Value {
    serde_json::to_value(Measured::new(what, of, value, "ns").size(size).against(1.0)).unwrap()
}

#[test]
fn a_report_has_every_figure_and_a_plot_of_what_was_run() {
    let out = tempfile::tempdir().unwrap();
    let documents = [
        document(
            "transit",
            vec![
                transit("hyphae aes-256-gcm", 1, 0.25),
                transit("hyphae aes-256-gcm", 64, 5.0),
                transit("same driver, no cryptography", 64, 16.0),
            ],
        ),
        document(
            "aead",
            vec![
                measured("open link parts", "aes-256-gcm", 64, 71.5),
                measured("seal link parts", "aes-256-gcm", 64, 70.0),
            ],
        ),
        document("fib", vec![measured("lookup", "hit", 1000, 12.25)]),
        document(
            "scale",
            vec![
                measured("flows", "relayed packet", 1, 190.0),
                measured("flows", "relayed packet", 10, 250.0),
            ],
        ),
        document(
            "versus",
            vec![
                measured("TCP, relayed", "hyphae", 1, 4.0),
                measured("TCP, relayed", "a <b>", 1, 2.0),
            ],
        ),
    ];
    write(out.path(), &documents).unwrap();
    let page = std::fs::read_to_string(out.path().join("performance.md")).unwrap();
    for figure in [
        "12.2",
        "71.5",
        "hyphae aes-256-gcm | 64 | 64 | 5.00",
        "Measured from 2026",
    ] {
        assert!(page.contains(figure), "{figure} in {page}");
    }
    let files = [
        "trains-small",
        "trains-large",
        "stages",
        "scale",
        "versus-throughput",
    ];
    for file in files.map(|file| format!("{file}.svg")) {
        assert!(
            page.contains(&format!("(performance/{file})")),
            "{file} is shown"
        );
        let svg = std::fs::read_to_string(out.path().join("performance").join(&file)).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.ends_with("</svg>\n"),
            "{file}"
        );
    }
    let svg =
        std::fs::read_to_string(out.path().join("performance/versus-throughput.svg")).unwrap();
    assert!(
        svg.contains("a &lt;b&gt;") && svg.contains("0.50x"),
        "{svg}"
    );
    // What was written can be read again.
    let again = read(&[out.path().join("performance.json")]).unwrap();
    assert_eq!(again.len(), documents.len());
}

#[test]
fn what_was_not_run_has_no_plot() {
    let documents = [document(
        "ring",
        vec![measured("in and out", "one", 64, 10.0)],
    )];
    assert!(plots::all(&documents).unwrap().is_empty());
}
