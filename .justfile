# Common commands; `just --list`. Everything here is also plain cargo.

# Network namespaces and TUN devices need root.
sudo := if `id -u` == "0" { "" } else { "sudo" }

# Format, lint and test.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo test --workspace --locked

# A client, a relay and a server in network namespaces, measured end to end.
lab seconds="10":
    cargo build --release
    {{ sudo }} target/release/hyphae lab --seconds {{ seconds }}

# One benchmark, for example `just bench transit`.
bench name *args:
    cargo build --release --workspace
    {{ sudo }} target/release/hyphae-bench {{ name }} {{ args }}

# Regenerate default.toml and the pages of configuration, metrics and RPC methods.
generate:
    HYPHAE_WRITE_CONFIG=1 cargo test -p hyphae-config
    HYPHAE_WRITE_METRICS=1 cargo test -p hyphae-metrics
    HYPHAE_WRITE_OPENRPC=1 cargo test -p hyphae-rpc --test openrpc

# The documentation of all packages, in target/doc.
doc:
    RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --no-deps --workspace --locked

# The gate for changes.
gate:
    .ci/run
