//! What microVMs of this node boot from: a bundle of a kernel and Atoll's own programs, made once and whenever one of them is
//! another.
use std::fs;
use std::path::{Path, PathBuf};

use ::guest::bundle::Programs;
use ::guest::{Bundle, fetch};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::machines::beside;
use crate::out;
use crate::settings::Resolved;

/// Says which bundle is this node's, and what it was made of.
const CURRENT: &str = "current.json";

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Current {
    bundle: String,
    /// A digest of each of the programs in it.
    programs: Vec<String>,
    /// The kernel that the settings named.
    kernel: Option<PathBuf>,
}

/// Where bundles lie.
pub(crate) fn place(settings: &Resolved) -> PathBuf {
    settings.data_dir.join("guest")
}

/// The one of before, if it is of the same programs and kernel, or a new one. Blocks.
pub(crate) fn bundle(settings: &Resolved) -> Result<Bundle> {
    let programs = programs()?;
    let digests = digests(&programs)?;
    let place = place(settings);
    if let Some(current) = read(&place)
        && current.programs == digests
        && current.kernel == settings.guest_kernel
        && let Ok(bundle) = Bundle::load(&place.join(&current.bundle))
    {
        return Ok(bundle);
    }
    let bundle = make(&programs, settings.guest_kernel.as_deref(), &place)?;
    let current = Current {
        bundle: bundle.id(),
        programs: digests,
        kernel: settings.guest_kernel.clone(),
    };
    let (path, fresh) = (place.join(CURRENT), place.join("current.json.new"));
    fs::write(&fresh, serde_json::to_vec(&current)?)
        .with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(bundle)
}

/// Whether there is one that an earlier start made.
pub(crate) fn is_made(settings: &Resolved) -> bool {
    read(&place(settings)).is_some()
}

/// The programs that go into a bundle, beside this one.
pub(crate) fn programs() -> Result<Programs> {
    for name in ["atoll-guest", "atoll-envd", "atoll-sudo"] {
        beside(name)?;
    }
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    Ok(Programs::of(own.parent().context("this program lies nowhere")?))
}

/// Makes a bundle of a kernel package that was extracted in `kernel`, or of one that is fetched.
pub(crate) fn make(programs: &Programs, kernel: Option<&Path>, out: &Path) -> Result<Bundle> {
    let fetched;
    let kernel = match kernel {
        Some(kernel) => kernel,
        None => {
            out::say("fetching a kernel from the distribution's packages, for microVMs");
            fetched = fetch::kernel(&std::env::temp_dir())?;
            &fetched.dir()
        }
    };
    Ok(Bundle::make(kernel, programs, out)?)
}

fn digests(programs: &Programs) -> Result<Vec<String>> {
    [&programs.agent, &programs.envd, &programs.sudo]
        .into_iter()
        .map(|path| {
            let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let digest = Sha256::digest(bytes);
            Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
        })
        .collect()
}

fn read(place: &Path) -> Option<Current> {
    serde_json::from_slice(&fs::read(place.join(CURRENT)).ok()?).ok()
}
