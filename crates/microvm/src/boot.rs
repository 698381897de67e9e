//! What guests boot from, and what they are told then.
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use guest::boot::{LineKind, Network, RootDisk, Settings};
use model::SandboxId;
use ports::step::{At, Step};

use crate::agent::Name;

/// What guests boot from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// A bzImage; under Firecracker also an ELF, which a bzImage is unpacked to where that version does not boot it.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
    /// The name of both by their content: memory is brought back to the same alone.
    pub digest: String,
}

impl From<&guest::Bundle> for Guest {
    fn from(bundle: &guest::Bundle) -> Self {
        Self {
            kernel: bundle.kernel(),
            initrd: bundle.initrd(),
            digest: bundle.id().to_owned(),
        }
    }
}

/// What a kernel and the agent are told, after what is told the kernel alone: ids of our own.
///
/// # Errors
/// They cannot be on a command line.
pub fn command_line(
    kernel: &str,
    sandbox: SandboxId,
    network: Option<(Network, Vec<Ipv4Addr>)>,
    line: LineKind,
) -> Result<String, Step> {
    let Name { hostname, machine_id } = Name::of(sandbox);
    let (network, nameservers) = network.unzip();
    let settings = Settings {
        hostname,
        machine_id,
        network,
        nameservers: nameservers.unwrap_or_default(),
        line,
        root: RootDisk::FIRST,
    };
    let told = settings
        .to_command_line()
        .map_err(io::Error::other)
        .at("telling a machine its settings")?;
    Ok(format!("{kernel} {told}"))
}
