//! What the machine must have, and how it gets it: by apt on Debian and its kin, as a clear list elsewhere.
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::build::{MUSL, has_musl};
use crate::shell::{command, has, run};

/// One thing that the machine must have.
struct Need {
    /// A program, or a file by its whole path, that shows that it is there.
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
        program: "/usr/include/stdio.h",
        package: "libc6-dev",
        why: "is what SQLite is compiled with and programs are linked to",
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
        program: "docker-registry",
        package: "docker-registry",
        why: "gives the tests images to pull",
    },
    Need {
        program: "pg_lsclusters",
        package: "postgresql",
        why: "is the database of the tests' fleet",
    },
    Need {
        program: "redis-server",
        package: "redis-server",
        why: "is what the processes of the tests' fleet share",
    },
    Need {
        program: "nsenter",
        package: "util-linux",
        why: "starts nodes of the tests' fleet in networks of their own",
    },
    Need {
        program: "e2fsck",
        package: "e2fsprogs",
        why: "checks cloned disks",
    },
    Need {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "is what the microVMs of the tests run in",
    },
    Need {
        program: "qemu-img",
        package: "qemu-utils",
        why: "checks their disks",
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
    Need {
        program: "wrk",
        package: "wrk",
        why: "asks the edge in the benchmark",
    },
];

/// How long rustup may take to fetch the musl target, which is nice to have: a tenth of the start-up time of envd.
const MUSL_WITHIN: Duration = Duration::from_secs(10);

/// Has what building and running needs.
pub(crate) fn to_run() -> Result<()> {
    have(TO_RUN)?;
    try_musl();
    Ok(())
}

/// Gets the musl target where rustup is there and reaches its server in time. Nothing depends on it.
fn try_musl() {
    if has_musl() || !has("rustup") {
        return;
    }
    let mut rustup = command("rustup");
    rustup
        .args(["target", "add", MUSL])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let Ok(mut rustup) = rustup.spawn() else {
        return;
    };
    let until = Instant::now() + MUSL_WITHIN;
    while matches!(rustup.try_wait(), Ok(None)) {
        if Instant::now() > until {
            let _ = rustup.kill();
            let _ = rustup.wait();
            return;
        }
        #[expect(clippy::disallowed_methods, reason = "there is no runtime here")]
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Has what the test suite needs.
pub(crate) fn to_test() -> Result<()> {
    to_run()?;
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
    let missing: Vec<&Need> = needs.iter().filter(|need| !is_there(need.program)).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        install(&missing)
    }
}

fn is_there(program: &str) -> bool {
    if program.starts_with('/') {
        Path::new(program).exists()
    } else {
        has(program)
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
