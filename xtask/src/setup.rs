//! What the machine must have, and how it gets it: by apt on Debian and its kin, as a clear list elsewhere.
use anyhow::{Result, bail};

use crate::shell::{command, has, run};

/// One thing that the machine must have.
struct Need {
    /// A program that shows that it is there.
    program: &'static str,
    /// Debian's package.
    package: &'static str,
    /// What it is for.
    why: &'static str,
}

/// For building and running Atoll.
const TO_RUN: &[Need] = &[
    Need {
        program: "cc",
        package: "gcc",
        why: "links Rust programs and compiles SQLite",
    },
    Need {
        program: "mkfs.ext4",
        package: "e2fsprogs",
        why: "makes the sandboxes' disks",
    },
    Need {
        program: "mkfs.xfs",
        package: "xfsprogs",
        why: "makes the volume on which disks are cloned",
    },
    Need {
        program: "curl",
        package: "curl",
        why: "is part of the base template",
    },
    Need {
        program: "git",
        package: "git",
        why: "is part of the base template",
    },
    Need {
        program: "python3",
        package: "python3",
        why: "is part of the base template",
    },
];

/// For the test suite, beyond that.
const TO_TEST: &[Need] = &[
    Need {
        program: "ip",
        package: "iproute2",
        why: "makes the tests' own network hosts",
    },
    Need {
        program: "nft",
        package: "nftables",
        why: "shows the tests which firewall rules are there",
    },
    Need {
        program: "npm",
        package: "npm",
        why: "installs the JavaScript SDK",
    },
    Need {
        program: "mmdebstrap",
        package: "mmdebstrap",
        why: "makes a root that owes nothing to the host",
    },
    Need {
        program: "e2fsck",
        package: "e2fsprogs",
        why: "checks cloned disks",
    },
];

/// For the benchmarks, beyond that.
const TO_BENCH: &[Need] = &[
    Need {
        program: "crun",
        package: "crun",
        why: "is a peer in the benchmark",
    },
    Need {
        program: "bwrap",
        package: "bubblewrap",
        why: "is a peer in the benchmark",
    },
];

/// Has what building and running needs.
pub(crate) fn to_run() -> Result<()> {
    have(TO_RUN)
}

/// Has what the test suite needs.
pub(crate) fn to_test() -> Result<()> {
    have(TO_RUN)?;
    have(TO_TEST)?;
    // Debian's python3 comes without venv; other systems' comes with it.
    let venv = command("python3")
        .args(["-c", "import venv, ensurepip"])
        .output()
        .is_ok_and(|o| o.status.success());
    if venv {
        Ok(())
    } else {
        install(&[&Need {
            program: "python3",
            package: "python3-venv",
            why: "holds the Python SDK apart",
        }])
    }
}

/// Has what the benchmarks need.
pub(crate) fn to_bench() -> Result<()> {
    to_test()?;
    have(TO_BENCH)
}

fn have(needs: &'static [Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !has(need.program)).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        install(&missing)
    }
}

fn install(missing: &[&Need]) -> Result<()> {
    for need in missing {
        eprintln!(
            "setup: {} is missing ({}): it {}",
            need.program, need.package, need.why
        );
    }
    if !has("apt-get") || !is_root() {
        bail!(
            "install these packages (or your distribution's equivalents) and run this again, as root: {}",
            names(missing)
        );
    }
    eprintln!("setup: apt-get install {}", names(missing));
    let _ = run(command("apt-get").args(["update", "-qq"]));
    let mut apt = command("apt-get");
    apt.args(["install", "-y", "-qq", "--no-install-recommends"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    run(apt.args(missing.iter().map(|need| need.package)))
}

fn names(needs: &[&Need]) -> String {
    needs
        .iter()
        .map(|need| need.package)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .is_some_and(|uids| uids.split_whitespace().nth(1) == Some("0"))
}
