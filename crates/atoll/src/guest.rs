//! `atoll guest`.
use std::path::PathBuf;
use std::process::ExitCode;

use ::guest::bundle::Programs;
use ::guest::{Bundle, fetch};
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::out;
use crate::settings::Settings;

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
        let own = std::env::current_exe().context("cannot tell where this program lies")?;
        let beside = own.parent().context("this program lies nowhere")?;
        let programs = Programs::of(beside);
        for program in [&programs.agent, &programs.envd, &programs.sudo] {
            anyhow::ensure!(
                program.exists(),
                "{} is missing: it belongs beside {}",
                program.display(),
                own.display()
            );
        }
        let out = self.out.unwrap_or_else(|| settings.data_dir.join("guest"));
        let fetched;
        let kernel = match self.kernel {
            Some(kernel) => kernel,
            None => {
                out::say("fetching a kernel from the distribution's packages");
                fetched = fetch::kernel(&std::env::temp_dir())?;
                fetched.dir()
            }
        };
        let bundle = Bundle::make(&kernel, &programs, &out)?;
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
