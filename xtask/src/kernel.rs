//! The kernel that microVMs of the tests boot: the distribution's generic one, fetched once and installed nowhere.
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell::cache;

/// A directory into which the kernel's package was extracted; where there is none yet, one is fetched. `None`, said aloud,
/// where it cannot be had.
pub(crate) fn have() -> Option<PathBuf> {
    get()
        .inspect_err(|error| eprintln!("setup: SKIPPED: microVMs are not tested: no kernel: {error:#}"))
        .ok()
}

fn get() -> Result<PathBuf> {
    let place = cache().join("kernel");
    if place.join("boot").is_dir() {
        return Ok(place);
    }
    eprintln!("setup: fetching a kernel for microVMs");
    let _ = fs::remove_dir_all(&place);
    let fetched = guest::fetch::kernel(&cache())?;
    fs::rename(fetched.dir(), &place).with_context(|| format!("cannot make {}", place.display()))?;
    Ok(place)
}
