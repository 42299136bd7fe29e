//! Flags of the command line.

use std::path::PathBuf;

use crate::endpoint::{PeerUrl, RouteSpec};

/// What was given on the command line; `None` and empty lists change nothing.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--listen`
    pub listen: Option<String>,
    /// `--peer`, added to those of the file.
    pub peers: Vec<PeerUrl>,
    /// `--route`, added to those of the file.
    pub routes: Vec<RouteSpec>,
    /// `--mtu`
    pub mtu: Option<u16>,
    /// `--tun-name`
    pub tun_name: Option<String>,
    /// `--no-tun`
    pub no_tun: bool,
    /// `--cores`
    pub cores: Option<String>,
    /// `--driver`
    pub driver: Option<String>,
    /// `--suite`
    pub suite: Option<String>,
    /// `--metrics`
    pub metrics: Option<String>,
    /// `--rpc`
    pub rpc: Option<String>,
    /// `--rest`
    pub rest: Option<String>,
    /// `--log-level`
    pub log_level: Option<String>,
    /// `--log-format`
    pub log_format: Option<String>,
    /// `--network`
    pub network: Option<String>,
    /// `--network-key`
    pub network_key: Option<PathBuf>,
    /// `--discovery`
    pub discovery: Option<String>,
}
