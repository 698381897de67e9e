//! The programs that Atoll brings into every sandbox: envd, and a `sudo` that asks for no password.
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::step::{At, Step};

/// Where envd lies inside.
pub(crate) const INSIDE: &str = "/run/atoll/agent";
/// envd's host-only socket, inside.
pub(crate) const SOCKET: &str = "run/atoll/envd.sock";

/// Stages envd in a directory of its own, under a name that changes with its content: sandboxes that run an older one
/// keep it.
pub(crate) fn stage(envd: &Path, data: &Path) -> Result<PathBuf, Step> {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let bytes = fs::read(envd).at(format!("reading {}", envd.display()))?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let dir = data.join("agent").join(format!("{:016x}", hasher.finish()));
    let program = dir.join("envd");
    if program.exists() {
        return Ok(dir);
    }
    fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
    let partial = dir.join("envd.partial");
    fs::write(&partial, bytes).at(format!("writing {}", partial.display()))?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)).at("making envd executable")?;
    fs::rename(&partial, &program).at(format!("naming {}", program.display()))?;
    Ok(dir)
}
