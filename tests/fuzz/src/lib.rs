//! One function per parser that reads what somebody else wrote: any bytes go in, nothing may panic,
//! and what is accepted must mean the same when it is written again.
//!
//! Each is driven in two ways: `tests/replay.rs` runs it over its corpus and over seeded mutations
//! of it on every `cargo test`; the harnesses in `libfuzzer/` let libFuzzer loose on it
//! (docs/testing.md). A finding becomes a file in `corpus/<target>/`.

#![forbid(unsafe_code)]

mod babel;
mod bus;
mod caller;
mod engine;
mod framing;
mod host;
mod realm;
mod records;
mod rpc;
mod spelling;
mod text;
mod wire;

pub use babel::babel;
pub use bus::{bus, message};
pub use caller::{caller, token};
pub use engine::engine;
pub use framing::framing;
pub use host::{coalesce, inspect, split};
pub use realm::realm;
pub use records::records;
pub use rpc::rpc;
pub use spelling::spelling;
pub use text::text;
pub use wire::{control, frame, handshake, offer};

/// A target and its name, which is that of its corpus folder and of its harness.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name.
    pub name: &'static str,
    /// Panics when the parser, or a property of what it accepts, is broken.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "frame",
        run: frame,
    },
    Target {
        name: "handshake",
        run: handshake,
    },
    Target {
        name: "offer",
        run: offer,
    },
    Target {
        name: "control",
        run: control,
    },
    Target {
        name: "babel",
        run: babel,
    },
    Target {
        name: "message",
        run: message,
    },
    Target {
        name: "bus",
        run: bus,
    },
    Target {
        name: "text",
        run: text,
    },
    Target {
        name: "records",
        run: records,
    },
    Target {
        name: "engine",
        run: engine,
    },
    Target {
        name: "inspect",
        run: inspect,
    },
    Target {
        name: "split",
        run: split,
    },
    Target {
        name: "coalesce",
        run: coalesce,
    },
    Target {
        name: "rpc",
        run: rpc,
    },
    Target {
        name: "framing",
        run: framing,
    },
    Target {
        name: "spelling",
        run: spelling,
    },
    Target {
        name: "caller",
        run: caller,
    },
    Target {
        name: "token",
        run: token,
    },
    Target {
        name: "realm",
        run: realm,
    },
];

/// Cuts the first `N` bytes off.
fn take<const N: usize>(data: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = data.split_first_chunk()?;
    *data = rest;
    Some(*head)
}
