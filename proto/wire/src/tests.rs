//! Round trips and refusals of every parser of this crate, over generated input. Byte-exact
//! examples are in `tests/golden`, hostile bytes in `tests/fuzz`; what concerns one type only is
//! tested beside it.

mod babel;
mod frame;
mod handshake;
mod signature;
mod text;

use proptest::test_runner::{Config, RngAlgorithm};

/// Runs without the file system, so that miri can interpret it; few cases there, it is slow.
fn config() -> Config {
    Config {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::ChaCha,
        ..Config::default()
    }
}
