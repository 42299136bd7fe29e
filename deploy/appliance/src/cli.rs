//! The command line: commands, flags, and how results and errors are printed.
//!
//! Every flag is optional and has no default of its own: defaults belong to the configuration. Exit codes: 0 success,
//! 1 failure, 2 usage error, 141 standard output was closed by its reader (EPIPE).

mod admin;
mod config;
mod down;
mod drain;
mod key;
mod message;
mod output;
mod package;
mod peer;
mod plane;
mod probe;
mod reload;
mod route;
mod status;
mod topic;
mod up;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use hyphae_store::files::{self, StateError};
use nix::sys::signal::Signal;

pub(crate) use output::{document, line, notice, progress, reported, table};
pub(crate) use plane::{RESTARTED, SHUT_DOWN, SUPERVISED, end_with_parent};
pub use up::NodeArgs;

/// An encrypted IPv6 overlay router with a message bus.
#[derive(Debug, Parser)]
#[command(
    name = "hyphae",
    version,
    propagate_version = true,
    infer_long_args = false
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON document instead of text; errors too.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a node.
    #[command(
        after_help = "Examples:\n  hyphae up\n  hyphae up --peer udp://192.0.2.1:9670\n  \
        hyphae up --config /etc/hyphae.toml --no-tun\n  hyphae up --peer udp://relay.example:9670#KEY \
        --peer tcp://relay.example:443\n  hyphae up --network garden --network-key garden.key"
    )]
    Up(NodeArgs),
    /// Generate or show the node's key; generate keys of private networks.
    #[command(
        after_help = "Examples:\n  hyphae key generate\n  hyphae key show --json\n  hyphae key network garden.key"
    )]
    Key {
        #[command(subcommand)]
        command: key::KeyCommand,
    },
    /// Check, show and explain the configuration.
    #[command(
        after_help = "Examples:\n  hyphae config check hyphae.toml\n  hyphae config show --diff\n  \
        hyphae config explain session.lost_after_ms"
    )]
    Config {
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Check that this host is ready to run a node; suggest fixes. Exit codes: 0 nothing to do, 1 a
    /// warning, 2 a failure.
    #[command(
        after_help = "Examples:\n  hyphae doctor\n  hyphae doctor --config /etc/hyphae/hyphae.toml --json\n\n\
        Works for every user, and lists what it could not check. Give it the flags of the node."
    )]
    Doctor(Box<crate::doctor::DoctorArgs>),
    /// Reload the configuration of a running node; settings that need a restart are listed.
    #[command(
        after_help = "Examples:\n  hyphae reload --dry-run\n  hyphae reload --json | jq .restart\n\n\
        SIGHUP does the same, and the result is in the log."
    )]
    Reload(reload::ReloadArgs),
    /// Stop a node that `hyphae up` runs, and wait until it has ended.
    #[command(
        after_help = "Examples:\n  hyphae down\n  hyphae down --timeout 30 --json\n\n\
        A node that systemd runs is not stopped; the error names the unit to stop."
    )]
    Down(down::DownArgs),
    /// Show the state of a running node. Fails while a plane is down.
    #[command(after_help = "Examples:\n  hyphae status\n  hyphae status --json | jq .drops")]
    Status(NodeRef),
    /// List, add and remove peers of a running node.
    #[command(
        after_help = "Examples:\n  hyphae peer list\n  hyphae peer add udp://192.0.2.1:9670\n  \
        hyphae peer add tcp://192.0.2.1:443#KEY\n  hyphae peer remove udp://192.0.2.1:9670"
    )]
    Peer {
        #[command(subcommand)]
        command: peer::PeerCommand,
    },
    /// List the routes of a running node; add and remove static routes, which take precedence over learned ones.
    #[command(
        after_help = "Examples:\n  hyphae route list\n  hyphae route list --fallback\n  hyphae route add 400:1:2:3::/64 KEY\n  \
        hyphae route remove 400:1:2:3::/64"
    )]
    Route {
        #[command(subcommand)]
        command: route::RouteCommand,
    },
    /// Send and receive messages.
    #[command(
        after_help = "Examples:\n  hyphae message send 400:1234::1 hello --topic greetings\n  \
        hyphae message receive --wait"
    )]
    Message {
        #[command(subcommand)]
        command: message::MessageCommand,
    },
    /// Manage topic access lists, and the local sockets that serve topics.
    #[command(
        after_help = "Examples:\n  hyphae topic list\n  hyphae topic add logs\n  \
        hyphae topic pubkey-source add logs KEY\n  hyphae topic forward set logs /run/app.sock"
    )]
    Topic {
        #[command(subcommand)]
        command: topic::TopicCommand,
    },
    /// Manage who may administer this node over the bus; call methods of other nodes.
    #[command(
        after_help = "Examples:\n  hyphae admin add KEY\n  hyphae admin patterns 'get*'\n  \
        hyphae admin call KEY getInfo"
    )]
    Admin {
        #[command(subcommand)]
        command: admin::AdminCommand,
    },
    /// Measure the round trip to another node through the overlay.
    #[command(
        after_help = "Examples:\n  hyphae ping 400:1234::1\n  hyphae ping 400:1234::1 --count 3 --json"
    )]
    Ping(probe::PingArgs),
    /// Show the nodes on the path to another node.
    #[command(
        after_help = "Examples:\n  hyphae trace 400:1234::1\n  hyphae trace 400:1234::1 --max-hops 8 --json"
    )]
    Trace(probe::TraceArgs),
    /// Take a relay out of the paths of other nodes before maintenance, and put it back.
    #[command(
        after_help = "Examples:\n  hyphae drain               (waits until it carries nothing)\n  \
        hyphae drain --no-wait\n  hyphae drain --off"
    )]
    Drain(drain::DrainArgs),
    /// Measure this host: a client, a relay and a server in network namespaces.
    #[command(
        after_help = "Examples:\n  sudo hyphae lab --seconds 10\n  sudo hyphae lab --driver epoll --json\n  \
        hyphae lab           (without root: on loopback, without TUN devices)"
    )]
    Lab(crate::lab::LabArgs),
    /// Run the dataplane only (systemd units use this).
    #[command(hide = true, after_help = "Examples:\n  hyphae dataplane --no-tun")]
    Dataplane(NodeArgs),
    /// Run the control plane only (systemd units use this).
    #[command(hide = true, after_help = "Examples:\n  hyphae controlplane --no-tun")]
    Controlplane(NodeArgs),
    /// Write manual pages and completions (packages use this).
    #[command(
        hide = true,
        after_help = "Examples:\n  hyphae package-files DIRECTORY"
    )]
    PackageFiles {
        /// Output directory; must exist.
        directory: PathBuf,
    },
}

/// Selects a running node.
#[derive(Clone, Debug, Default, Args)]
pub struct NodeRef {
    /// Directory of the node's sockets [default: $HYPHAE_SOCKET_DIR, else /run/hyphae as root, else
    /// $XDG_RUNTIME_DIR/hyphae].
    #[arg(long, value_name = "DIR")]
    socket_dir: Option<PathBuf>,
    /// State directory of the node [default: $HYPHAE_STATE_DIR, else /var/lib/hyphae as root, else
    /// $XDG_STATE_HOME/hyphae].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl NodeRef {
    fn state_directory(&self) -> Result<PathBuf, StateError> {
        self.state_dir
            .clone()
            .map_or_else(files::default_directory, Ok)
    }

    fn socket_directory(&self) -> PathBuf {
        let state = self.state_directory().ok();
        self.socket_dir
            .clone()
            .unwrap_or_else(|| files::default_socket_directory(state.as_deref()))
    }

    fn client(&self) -> hyphae_rpc::Client {
        hyphae_rpc::Client::new(self.socket_directory().join("rpc.sock"))
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Children inherit the signals that the supervisor blocks.
    let mut signals = nix::sys::signal::SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    if let Err(error) = signals.thread_unblock() {
        output::notice(format_args!(
            "hyphae: signals cannot be unblocked ({error}); stopping may need SIGKILL"
        ));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error),
    };
    let json = cli.json;
    let result = match cli.command {
        Command::Up(args) => crate::supervisor::up(&args, json),
        Command::Key { command } => key::run(command, json),
        Command::Config { command } => {
            return config::run(command, json).unwrap_or_else(|error| failed(&error, json));
        }
        Command::Doctor(args) => {
            return crate::doctor::run(&args, json).unwrap_or_else(|error| failed(&error, json));
        }
        Command::Reload(args) => reload::run(&args, json),
        Command::Down(args) => down::run(&args, json),
        Command::Status(node) => status::run(&node, json),
        Command::Peer { command } => peer::run(command, json),
        Command::Route { command } => route::run(command, json),
        Command::Message { command } => message::run(command, json),
        Command::Topic { command } => topic::run(command, json),
        Command::Admin { command } => admin::run(command, json),
        Command::Ping(args) => probe::ping(&args, json),
        Command::Trace(args) => probe::trace(&args, json),
        Command::Drain(args) => drain::run(&args, json),
        Command::Lab(args) => crate::lab::run(&args, json),
        Command::Dataplane(args) => plane::dataplane(&args),
        Command::Controlplane(args) => {
            return plane::controlplane(&args).unwrap_or_else(|error| failed(&error, json));
        }
        Command::PackageFiles { directory } => package::write(&directory),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, json),
    }
}

fn failed(error: &anyhow::Error, json: bool) -> ExitCode {
    if output::is_broken_pipe(error) {
        return ExitCode::from(output::BROKEN_PIPE);
    }
    output::error(error, json);
    ExitCode::FAILURE
}

/// Prints help, version or a usage error.
fn not_parsed(error: &clap::Error) -> ExitCode {
    let shown = error.render();
    if !error.use_stderr() {
        let text = match std::io::stdout().is_terminal() {
            true => shown.ansi().to_string(),
            false => shown.to_string(),
        };
        let printed = output::raw(text.as_bytes());
        return printed.map_or_else(|error| failed(&error.into(), false), |()| ExitCode::SUCCESS);
    }
    // No flags were parsed, so `--json` is read from the raw arguments.
    let json = std::env::args_os().any(|word| word == "--json");
    let message = shown.to_string();
    let message = message.trim_start_matches("error: ").trim();
    if !json || output::error_document(message, None).is_err() {
        // Coloured on a terminal; a closed standard error is ignored.
        let _ = error.print();
    }
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_examples_and_takes_json() {
        let mut command = Cli::command();
        command.build();
        for sub in command
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
        {
            let help = sub
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains("hyphae"),
                "{} shows no example",
                sub.get_name()
            );
            assert!(
                sub.get_arguments().any(|arg| arg.get_id() == "json"),
                "{}",
                sub.get_name()
            );
        }
    }

    #[test]
    fn absent_flags_override_nothing() {
        let cli = Cli::parse_from(["hyphae", "up"]);
        let Command::Up(args) = cli.command else {
            panic!("up")
        };
        let overrides = args.overrides().unwrap();
        let plain = hyphae_config::Overrides::default();
        assert_eq!(format!("{overrides:?}"), format!("{plain:?}"));
    }
}
