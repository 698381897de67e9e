//! `atoll guest`.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::settings::Settings;
use crate::{kernel, out};

/// What can be done with what microVMs boot from.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes what microVMs boot from: a kernel of this machine's distribution, and an initramfs with Atoll's programs. It is
    /// named by its content; one that is there already is verified.
    Build(Box<Build>),
}

/// Of what, and where.
#[derive(Args)]
pub(crate) struct Build {
    /// A directory into which a kernel package was extracted, with boot/ and lib/modules/ [default: the generic kernel is
    /// downloaded by apt]
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// Where it is made [default: `guest` in the data directory]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Command {
    pub(crate) fn run(self, json: bool) -> Result<ExitCode> {
        let Command::Build(build) = self;
        build.run(json)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Build {
    fn run(self, json: bool) -> Result<()> {
        let settings = self.settings.resolve()?;
        let out = self.out.unwrap_or_else(|| kernel::place(&settings));
        let given = self.kernel.or_else(|| settings.guest_kernel.clone());
        let bundle = kernel::make(&kernel::programs()?, given.as_deref(), &out)?;
        if json {
            return out::json(&json!({
                "id": bundle.id(),
                "release": bundle.release(),
                "dir": bundle.dir(),
            }));
        }
        out::line(bundle.dir().display())
    }
}
