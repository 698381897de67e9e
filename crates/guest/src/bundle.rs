//! What machines boot from: `<dir>/<sha256>/{vmlinuz,initrd,bundle.json}`, made of a distribution's kernel package and of three
//! programs of ours. The name is a hash over everything that went into it, and what lies there is held to it at each load.
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cpio::Archive;
use crate::module::{self, Module};
use crate::program::ProgramError;

/// Goes up when the same inputs make another bundle.
const FORMAT: u32 = 1;
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd";
const MANIFEST: &str = "bundle.json";
/// Without it, machines that are restored from one memory draw the same random bytes.
const REQUIRED: &str = "CONFIG_VMGENID=y";
/// A kernel has some ten megabytes, a static program of ours some two.
const INPUT_BYTES_MAX: u64 = 128 << 20;
/// Names, hashes and a list of modules.
const MANIFEST_BYTES_MAX: u64 = 64 << 10;

/// A bundle that was found to be what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
}

/// What `bundle.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Manifest {
    format: u32,
    release: String,
    modules: Vec<String>,
    kernel: String,
    initrd: String,
}

/// The programs that go into it, all of them static.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `atoll-guest`.
    pub agent: PathBuf,
    /// `atoll-envd`.
    pub envd: PathBuf,
    /// `atoll-sudo`.
    pub sudo: PathBuf,
}

impl Programs {
    /// Those in a directory, by their names.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        Self {
            agent: dir.join("atoll-guest"),
            envd: dir.join("atoll-envd"),
            sudo: dir.join("atoll-sudo"),
        }
    }
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
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
    /// It is not the content of one kernel package.
    #[error(
        "{dir} holds {found} kernels: give a directory into which one kernel package was extracted, with boot/vmlinuz-*"
    )]
    Kernels {
        /// Where.
        dir: PathBuf,
        /// How many.
        found: usize,
    },
    /// The kernel does not renew its random state in copies of machines.
    #[error(
        "the kernel {release} is without {REQUIRED}, so copies of a machine would draw the same random bytes: use the \
         distribution's generic kernel, not the one for clouds"
    )]
    NoGeneration {
        /// Which kernel.
        release: String,
    },
    /// A module is missing.
    #[error("there is no module {name} below {dir}")]
    NoModule {
        /// Which.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// A file is no module.
    #[error("{0} is no kernel module")]
    BadModule(PathBuf),
    /// The list of modules is not right for this kernel.
    #[error(
        "the module {name} needs {need}, which is not loaded before it: this kernel needs another list of modules"
    )]
    Order {
        /// Which.
        name: String,
        /// What it needs.
        need: String,
    },
    /// What lies there is not what its name says.
    #[error("the bundle {dir} is not what it was ({why}): remove it, and make it again by atoll guest build")]
    Tampered {
        /// Where.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A program failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

impl Bundle {
    /// Makes one in `out`, of a directory into which a kernel package was extracted (`boot/vmlinuz-*`, `boot/config-*`,
    /// `lib/modules/*`), or returns the one that is there. Blocks.
    ///
    /// # Errors
    /// See [`BundleError`]. Nothing is left of it then.
    pub fn make(package: &Path, programs: &Programs, out: &Path) -> Result<Self, BundleError> {
        let (release, vmlinuz) = kernel(package)?;
        let config = package.join("boot").join(format!("config-{release}"));
        let is_required = |line: &str| line.trim() == REQUIRED;
        if !String::from_utf8_lossy(&read(&config)?).lines().any(is_required) {
            return Err(BundleError::NoGeneration { release });
        }
        let modules = [
            package.join("lib/modules").join(&release),
            package.join("usr/lib/modules").join(&release),
        ];
        let modules = module::resolve(modules.iter().find(|dir| dir.is_dir()).unwrap_or(&modules[0]))?;
        let vmlinuz = read(&vmlinuz)?;
        let initrd = initramfs(&modules, programs)?;
        let manifest = Manifest {
            format: FORMAT,
            release,
            modules: modules.into_iter().map(|module| module.name).collect(),
            kernel: hex::encode(Sha256::digest(&vmlinuz)),
            initrd: hex::encode(Sha256::digest(&initrd)),
        };
        let dir = out.join(manifest.id());
        if let Ok(bundle) = Self::load(&dir) {
            return Ok(bundle);
        }
        manifest.write(&dir, &vmlinuz, &initrd)?;
        Self::load(&dir)
    }

    /// The one in a directory, after a look at every byte of it: some tens of milliseconds. Blocks.
    ///
    /// # Errors
    /// [`BundleError::Tampered`]: a file, or the directory's name, is not what `bundle.json` says.
    pub fn load(dir: &Path) -> Result<Self, BundleError> {
        let tampered = |why: String| BundleError::Tampered {
            dir: dir.to_owned(),
            why,
        };
        let text = read_bounded(&dir.join(MANIFEST), MANIFEST_BYTES_MAX)?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| tampered(format!("{MANIFEST}: {error}")))?;
        if manifest.format != FORMAT {
            return Err(tampered(format!("it is of format {}", manifest.format)));
        }
        if dir.file_name().and_then(|name| name.to_str()) != Some(manifest.id().as_str()) {
            return Err(tampered(format!("its name should be {}", manifest.id())));
        }
        for (name, hash) in [(KERNEL, &manifest.kernel), (INITRD, &manifest.initrd)] {
            if hex::encode(Sha256::digest(read(&dir.join(name))?)) != *hash {
                return Err(tampered(format!("{name} has another content")));
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            manifest,
        })
    }

    /// Its name: a hash over everything that a machine boots from. Memory that was saved belongs to one of them.
    #[must_use]
    pub fn id(&self) -> String {
        self.manifest.id()
    }

    /// The kernel's release, as of uname(1).
    #[must_use]
    pub fn release(&self) -> &str {
        &self.manifest.release
    }

    /// Where it lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The kernel, a bzImage.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(KERNEL)
    }

    /// The initramfs.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.dir.join(INITRD)
    }
}

impl Manifest {
    fn id(&self) -> String {
        let text = serde_json::to_vec(self).expect("strings are JSON");
        hex::encode(Sha256::digest(text))
    }

    /// Writes everything beside its place, and renames it there: a bundle is whole, or not there.
    fn write(&self, dir: &Path, vmlinuz: &[u8], initrd: &[u8]) -> Result<(), BundleError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| BundleError::File { what, path, source }
        };
        let out = dir.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(out).map_err(failed("making", out))?;
        let fresh = tempfile::Builder::new()
            .prefix(".bundle-")
            .tempdir_in(out)
            .map_err(failed("making a directory in", out))?;
        let mut text = serde_json::to_vec_pretty(self).expect("strings are JSON");
        text.push(b'\n');
        for (name, content) in [(KERNEL, vmlinuz), (INITRD, initrd), (MANIFEST, &text)] {
            let path = fresh.path().join(name);
            let written = fs::File::create_new(&path).and_then(|mut file| {
                file.write_all(content)?;
                file.sync_all()
            });
            written.map_err(failed("writing", &path))?;
        }
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(fresh.path(), fs::Permissions::from_mode(0o755))
            .map_err(failed("opening", fresh.path()))?;
        if dir.exists() {
            // It was looked at before, and is not what it says.
            fs::remove_dir_all(dir).map_err(failed("removing", dir))?;
        }
        match fs::rename(fresh.path(), dir) {
            Ok(()) => {
                let _ = fresh.keep();
            }
            // Somebody else made the same one meanwhile.
            Err(_) if dir.exists() => {}
            Err(error) => return Err(failed("naming", dir)(error)),
        }
        fs::File::open(out)
            .and_then(|out| out.sync_all())
            .map_err(failed("syncing", out))
    }
}

/// Release and place of the one kernel of a package.
fn kernel(package: &Path) -> Result<(String, PathBuf), BundleError> {
    let boot = package.join("boot");
    let failed = |source| BundleError::File {
        what: "reading",
        path: boot.clone(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(&boot).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            found.push((release.to_owned(), entry.path()));
        }
    }
    if found.len() == 1 {
        Ok(found.swap_remove(0))
    } else {
        Err(BundleError::Kernels {
            dir: package.to_owned(),
            found: found.len(),
        })
    }
}

fn initramfs(modules: &[Module], programs: &Programs) -> Result<Vec<u8>, BundleError> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys"] {
        archive.directory(dir);
    }
    // What init says before it has mounted anything goes there.
    archive.device("dev/console", 0o600, (5, 1));
    archive.device("dev/null", 0o666, (1, 3));
    archive.file("init", 0o755, &read(&programs.agent)?);
    archive.file("agent/envd", 0o755, &read(&programs.envd)?);
    archive.file("agent/sudo", 0o4755, &read(&programs.sudo)?);
    let order: String = modules
        .iter()
        .map(|module| format!("{}.ko\n", module.name))
        .collect();
    archive.file("modules/order", 0o644, order.as_bytes());
    for module in modules {
        archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.content);
    }
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    read_bounded(path, INPUT_BYTES_MAX)
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, BundleError> {
    let read = || {
        let mut content = Vec::new();
        fs::File::open(path)?
            .take(bytes_max + 1)
            .read_to_end(&mut content)?;
        if content.len() as u64 > bytes_max {
            return Err(io::Error::other(format!("it has more than {bytes_max} bytes")));
        }
        Ok(content)
    };
    read().map_err(|source| BundleError::File {
        what: "reading",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
