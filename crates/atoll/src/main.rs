//! `atoll`: the server and its tools, in one program.
//!
//! ```text
//! up ──▶ house ──▶ orchestrator, node, container, api, edge     every role, wired in one place
//! down, status, gc, image ──▶ control                           a word with the running daemon
//! env, tls, doctor, guest                                       what people need beside it
//! sandbox, key, template, snapshot, volume, node ──▶ client     the API, from a terminal
//! ```
//!
//! **Invariants.** Only this crate reads the environment and chooses adapters. What a command was asked for goes to
//! standard output, all other talk to standard error, both by `out`. Exit codes are those of [`ENDS`].
#![forbid(unsafe_code)]

mod admin;
mod base;
mod block;
mod ca;
mod client;
mod control;
mod data;
mod deploy;
mod dev;
mod doctor;
mod down;
mod gc;
mod guest;
mod host;
mod house;
mod image;
mod images;
mod kernel;
mod machines;
mod migrate;
mod no_volumes;
mod out;
mod serve;
mod settings;
mod status;
mod tasks;
mod telemetry;
mod tls;
mod traces;
mod up;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::settings::Settings;

/// What every command holds to.
const ENDS: &str = "\
What a command was asked for is on standard output, all other talk on standard error.

With `--json`, that is one JSON document, also where a command has nothing else to say; `sandbox logs --follow` prints one \
for each line, and so does `template logs --follow`. `sandbox exec`, `sandbox shell`, `completions` and `cp` to `-` \
refuse it: what they print is not their own. \
`up` prints its document when it is ready.

Exit codes:

* `0`: done
* `1`: failed; standard error says why, and standard output may hold no document
* `2`: the arguments were not understood; nothing was done
* `129`, `130`, `131`, `143`: ended by SIGHUP, SIGINT (Ctrl+C), SIGQUIT, SIGTERM; `sandbox exec` and `sandbox shell` first \
end the program inside; the build that `template build` waits for goes on
* `141`: nobody reads standard output any more, as after `| head`

`sandbox exec` and `sandbox shell` end as the program inside did: with its exit code, or with 128 and the number of the \
signal that ended it.";

/// `| head` has read enough: what SIGPIPE makes of other programs.
const UNREAD: u8 = 141;
/// As clap has it.
const NOT_UNDERSTOOD: u8 = 2;

/// An open, self-hosted cloud of sandboxes that speaks E2B's protocol.
#[derive(Parser)]
#[command(
    name = "atoll",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = ENDS
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Prints one JSON document.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Starts everything on this machine, and serves until it is told to stop. Sandboxes outlive it.
    Up(Settings),
    /// Serves as a process of a fleet, with the roles that are named, until it is told to stop. Sandboxes outlive it.
    Serve(serve::Options),
    /// Ends all sandboxes, and the daemon if it runs, and frees all that they held.
    Down(Settings),
    /// Says what the daemon is at.
    Status(Settings),
    /// Says what this machine can do, what it lacks, and how to get it.
    Doctor(Settings),
    /// Removes what nothing needs: builds, uploads, results of steps, layers of images beyond their bound.
    Gc(Settings),
    /// Brings the database to the schema of this program.
    Migrate(Settings),
    /// Makes the default team of a fleet's database, where there is none, and a key of it, which is printed.
    Bootstrap {
        #[command(flatten)]
        settings: Settings,
        /// What the key is called.
        #[arg(long, default_value = "default")]
        name: String,
    },
    /// Certificates by which the processes of a fleet know each other.
    #[command(subcommand)]
    Ca(ca::Command),
    /// Prints the id of this machine as a node, which its certificate names; makes one where there is none.
    NodeId(Settings),
    /// Holds capacity of this machine for its node, in an allocation of Nomad's, until it is told to stop and nothing is in it any
    /// more.
    Block(block::Options),
    /// Writes what starts a fleet's processes.
    #[command(subcommand)]
    Deploy(deploy::Command),
    /// Fleets on this machine, to be looked at and tested.
    #[command(subcommand)]
    Dev(dev::Command),
    /// What microVMs boot from.
    #[command(subcommand)]
    Guest(guest::Command),
    /// Images of this machine, which templates are built from.
    #[command(subcommand)]
    Image(image::Command),
    /// Prints the lines that let E2B's clients work with this server.
    Env(Settings),
    /// Says how to trust the certificates of this server.
    Tls {
        #[command(flatten)]
        settings: Settings,
        /// Prints the path of the authority's certificate, and nothing else.
        #[arg(long)]
        path: bool,
    },
    /// Sandboxes.
    #[command(subcommand)]
    Sandbox(client::sandbox::Command),
    /// API keys.
    #[command(subcommand)]
    Key(client::key::Command),
    /// Templates.
    #[command(subcommand)]
    Template(client::template::Command),
    /// Snapshots of sandboxes.
    #[command(subcommand)]
    Snapshot(client::snapshot::Command),
    /// Volumes.
    #[command(subcommand)]
    Volume(client::volume::Command),
    /// Machines that run sandboxes, for operators.
    #[command(subcommand)]
    Node(client::node::Command),
    /// Prints completions for a shell.
    Completions {
        /// For which.
        shell: clap_complete::Shell,
    },
    /// Prints this reference in Markdown.
    #[command(hide = true)]
    GenDocs,
}

impl Command {
    /// Whether what is printed is somebody else's: a program's inside, a shell's.
    const fn lends_output(&self) -> bool {
        match self {
            Self::Sandbox(command) => command.lends_output(),
            Self::Volume(command) => command.lends_output(),
            Self::Completions { .. } | Self::GenDocs => true,
            _ => false,
        }
    }
}

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    if let Some(file) = std::env::var_os("ATOLL_FAILPOINTS") {
        failpoint::arm(file.into());
    }
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) if error.is::<out::Unread>() => ExitCode::from(UNREAD),
        Err(error) => {
            out::say(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { command, json }: Arguments) -> anyhow::Result<ExitCode> {
    if json && command.lends_output() {
        let words = "--json cannot be used here: what this prints is not Atoll's own\n";
        Arguments::command()
            .error(ErrorKind::ArgumentConflict, words)
            .print()?;
        return Ok(ExitCode::from(NOT_UNDERSTOOD));
    }
    match command {
        Command::Up(settings) => up::run(settings.resolve()?, json),
        Command::Serve(options) => serve::run(options),
        Command::Migrate(settings) => migrate::run(&settings.resolve()?, json),
        Command::Bootstrap { settings, name } => migrate::bootstrap(&settings.resolve()?, &name, json),
        Command::Ca(command) => command.run(json),
        Command::NodeId(settings) => data::print_node_id(&settings.resolve()?, json),
        Command::Block(options) => on_runtime(block::run(options, json)),
        Command::Deploy(command) => command.run(json),
        Command::Dev(command) => command.run(json),
        Command::Down(settings) => down::run(settings.resolve()?, json),
        Command::Status(settings) => status::run(&settings.resolve()?, json),
        Command::Doctor(settings) => doctor::run(&settings.resolve()?, json),
        Command::Gc(settings) => gc::run(&settings.resolve()?, json),
        Command::Guest(command) => command.run(json),
        Command::Image(command) => command.run(json),
        Command::Template(client::template::Command::ImportHost(settings)) => {
            base::run(&settings.resolve()?, json)
        }
        Command::Env(settings) => data::print_env(&settings.resolve()?, json),
        Command::Tls { settings, path } => tls::run(&settings.resolve()?, path, json),
        Command::Sandbox(command) => client(async move |endpoint| command.run(&endpoint, json).await),
        Command::Key(command) => client(async move |endpoint| command.run(&endpoint, json).await),
        Command::Template(command) => client(async move |endpoint| command.run(&endpoint, json).await),
        Command::Snapshot(command) => client(async move |endpoint| command.run(&endpoint, json).await),
        Command::Volume(command) => client(async move |endpoint| command.run(&endpoint, json).await),
        Command::Node(command) => {
            let api = data::operator()?;
            on_runtime(async move { command.run(&api, json).await })
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "atoll", &mut script);
            out::text(&String::from_utf8(script)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::GenDocs => {
            out::line(clap_markdown::help_markdown::<Arguments>())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Runs a command of the client's, with the server that the environment or the data directory names.
fn client(
    command: impl AsyncFnOnce(client::Endpoint) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let endpoint = data::endpoint()?;
    on_runtime(command(endpoint))
}

fn on_runtime(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(command);
    // A read of standard input that nobody waits for any more must not hold up the end.
    runtime.shutdown_background();
    code
}
