//! Every chore of the project, behind one front door: `cargo xtask <chore>`.
//!
//! ```text
//! up      build, prepare the machine, start Atoll          setup ─▶ build ─▶ atoll up
//! test    the whole test suite                             setup ─▶ check ─▶ rust ─▶ house ─▶ tally
//! services  the services that the cluster's tests run beside Atoll, built from source
//! criu    a CRIU for this clone, so that pauses and copies hold memory
//! check   fmt, clippy, tidy (crate arrows, unsafe, docs), generated files, licences
//! bench   the benchmark table                              setup ─▶ release build ─▶ testkit's bench
//! bench cluster  the table of a fleet                      the same, and `atoll dev cluster`
//! fuzz    the fuzz targets, each for a minute
//! soak    sandboxes in churn, a daemon that dies, for long   setup ─▶ release build ─▶ tests/e2e/crash/soak.py
//! gen     regenerate what is generated and checked in
//! ```
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks to its user"
)]

mod bench;
mod build;
mod check;
mod clients;
mod criu;
mod fleet;
mod fuzz;
mod generate;
mod house;
mod kernel;
mod limits;
mod nested;
mod services;
mod setup;
mod shell;
mod soak;
mod suite;
mod tally;
mod tidy;
mod up;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Every chore of Atoll")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build Atoll, prepare the machine, start everything on loopback. Arguments go to `atoll up`.
    #[command(trailing_var_arg = true)]
    Up {
        /// Passed on to `atoll up`.
        #[arg(allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Build the programs, and put them into a directory, as a machine has them.
    Programs {
        /// Which directory.
        #[arg(long)]
        out: std::path::PathBuf,
    },
    /// Run the whole test suite, official SDKs included.
    Test(suite::Options),
    /// Get CRIU, so that pauses and copies hold memory: into this clone, nothing else is changed. Prints where it is.
    Criu,
    /// Have the services that the cluster's tests run beside Atoll: builds Consul from source, once. Prints where they are.
    Services,
    /// Run the static checks: fmt, clippy, tidy, generated files.
    Check,
    /// Print the benchmark table, or, as `bench cluster`, that of a whole fleet on this machine, or, as `bench microvms`, that of
    /// microVMs under QEMU. Arguments go to the benchmark:
    /// `--short`, `--only PART`, `--json FILE`.
    #[command(trailing_var_arg = true)]
    Bench {
        /// Passed on to the benchmark.
        #[arg(allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Fuzz the parsers of what strangers send, each for a given time.
    Fuzz(fuzz::Options),
    /// Churn sandboxes for long while the daemon dies and is started again. Arguments go to the soak; `--help` lists them.
    #[command(trailing_var_arg = true, disable_help_flag = true)]
    Soak {
        /// Passed on to the soak.
        #[arg(allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Regenerate what is generated and checked in; with `--check`, fail where it differs.
    Gen {
        /// Change nothing.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    match Args::parse().chore {
        Chore::Up { rest } => up::run(&rest),
        Chore::Programs { out } => build::programs(&out),
        Chore::Test(options) => suite::run(&options),
        Chore::Criu => criu::get().map(|program| println!("{}", program.display())),
        Chore::Services => services::print(),
        Chore::Check => check::run().map(|tally| println!("{tally}")),
        Chore::Bench { rest } => bench::run(&rest, build::Build::Released),
        Chore::Fuzz(options) => fuzz::fuzz(&options),
        Chore::Soak { rest } => soak::run_for(&rest),
        Chore::Gen { check } => generate::run(check),
    }
}
