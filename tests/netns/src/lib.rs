//! Tests with real processes: nodes in network namespaces, and the command line. The tests are in
//! `tests/`; engines and drivers are tested in their own packages.

#![forbid(unsafe_code)]
