//! A kernel from the distribution's own packages (Debian and its kin).
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{self, ProgramError};

/// A package is some seventy megabytes, and more are not asked for than one.
const DEPENDENCIES_MAX: usize = 16;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The machine is not of Debian's kin.
    #[error(
        "kernels are fetched by apt, which this machine does not have: extract a kernel package of your distribution, and give \
         its directory by --kernel DIR"
    )]
    NoApt,
    /// It has another processor than those that are known.
    #[error("no package is known to hold a kernel for {0}: give one by --kernel DIR")]
    Architecture(&'static str),
    /// The package leads to no kernel.
    #[error("the package {0} depends on no kernel package: give a kernel by --kernel DIR")]
    NoKernel(&'static str),
    /// A program failed.
    #[error("fetching a kernel failed; or give one by --kernel DIR")]
    Program(#[from] ProgramError),
    /// A file could not be read or written.
    #[error("{what} {path} failed")]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A kernel package, extracted in a directory that goes with this.
#[derive(Debug)]
pub struct Fetched(tempfile::TempDir);

impl Fetched {
    /// Where.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.0.path().join("root")
    }
}

/// Downloads the generic kernel package of this distribution, as `apt` knows it, and extracts it below `temporary`. Needs no
/// root, and installs nothing. Blocks, for as long as the download takes.
///
/// # Errors
/// See [`FetchError`].
pub fn kernel(temporary: &Path) -> Result<Fetched, FetchError> {
    let generic = generic_package()?;
    let mut depends = Command::new("apt-cache");
    depends.args(["depends", "--important", generic]);
    let depends = match program::run(depends, "apt") {
        Err(ProgramError::Absent { .. }) => return Err(FetchError::NoApt),
        depends => depends?,
    };
    let package = kernel_among(&String::from_utf8_lossy(&depends)).ok_or(FetchError::NoKernel(generic))?;
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| FetchError::File { what, path, source }
    };
    let dir = tempfile::Builder::new()
        .prefix("atoll-kernel-")
        .tempdir_in(temporary)
        .map_err(failed("making a directory in", temporary))?;
    let mut download = Command::new("apt-get");
    download
        // Its sandbox user cannot write here, and it would only warn of that.
        .args(["-o", "APT::Sandbox::User=root", "download", &package])
        .current_dir(dir.path());
    program::run(download, "apt")?;
    let archive = fs::read_dir(dir.path())
        .map_err(failed("reading", dir.path()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension() == Some(OsStr::new("deb")))
        .ok_or(FetchError::NoKernel(generic))?;
    let mut extract = Command::new("dpkg-deb");
    extract.arg("-x").arg(&archive).arg(dir.path().join("root"));
    program::run(extract, "dpkg")?;
    fs::remove_file(&archive).map_err(failed("removing", &archive))?;
    Ok(Fetched(dir))
}

/// The package that depends on the newest generic kernel.
fn generic_package() -> Result<&'static str, FetchError> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("linux-image-amd64"),
        other => Err(FetchError::Architecture(other)),
    }
}

/// The kernel package among what `apt-cache depends` says: `Depends: linux-image-6.1.0-56-amd64`.
fn kernel_among(depends: &str) -> Option<String> {
    let names = depends
        .lines()
        .take(DEPENDENCIES_MAX)
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    let is_kernel = |name: &&str| {
        let of = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+' | b'~');
        name.strip_prefix("linux-image-").is_some_and(|version| {
            version.starts_with(|first: char| first.is_ascii_digit()) && version.bytes().all(of)
        })
    };
    names.map(str::trim).find(is_kernel).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_from_what_else_a_package_needs() {
        let depends = "linux-image-amd64\n  Depends: firmware\n  Depends: linux-image-6.1.0-56-amd64\n";
        assert_eq!(
            kernel_among(depends).as_deref(),
            Some("linux-image-6.1.0-56-amd64")
        );
        for none in [
            "linux-image-amd64\n  Depends: linux-image-amd64-signed\n",
            "  Depends: linux-image-6.1 -o Dir::Etc=/tmp\n",
            "  Depends: <linux-image>\n",
        ] {
            assert_eq!(kernel_among(none), None, "{none}");
        }
    }
}
