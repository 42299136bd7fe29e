//! Rules about the tree itself, held by `tests/tree.rs`: sizes, where `unsafe` may be, manifests,
//! documents. Everything else is tested beside its code or in the other packages of this folder.

#![forbid(unsafe_code)]
