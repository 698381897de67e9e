//! What virtual machines need.
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use container::probe::{Check, Verdict};

use crate::kernel;
use crate::settings::Resolved;

/// Looks at QEMU, and at what guests boot from.
pub(super) fn look(settings: &Resolved) -> Result<Vec<Check>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let probed = runtime.block_on(qemu::probe(&settings.qemu));
    let (found, is_there) = match &probed {
        Ok(probed) => {
            let how = match &probed.why_not_kvm {
                None => "with KVM".to_owned(),
                Some(why) => format!("emulating the processor, which is many times slower than KVM: {why}"),
            };
            (format!("{}, {how}", probed.version), true)
        }
        Err(why) => (why.clone(), false),
    };
    let is_fast = matches!(&probed, Ok(probed) if probed.why_not_kvm.is_none());
    let verdict = if is_there { Verdict::Poor } else { Verdict::Missing };
    let is_root = rustix::process::geteuid().is_root();
    Ok(vec![
        Check::new(
            "QEMU",
            is_fast,
            verdict,
            found,
            "Debian: apt-get install qemu-system-x86; and KVM, where the machine has it",
        ),
        mkfs(),
        guest_kernel(settings),
        Check::new(
            "network of microVMs",
            is_root,
            Verdict::Poor,
            if is_root {
                "as their policy says"
            } else {
                "none: their sandboxes reach nothing outside"
            },
            "run as root",
        ),
    ])
}

/// Looks at Firecracker and its jailer, and at what guests boot from.
pub(super) fn look_at_firecracker(settings: &Resolved) -> Result<Vec<Check>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let jailer = settings.firecracker.with_file_name("jailer");
    let dir = tempfile::tempdir()?;
    let accepted = &settings.firecracker_accepts;
    let probe = fc_control::probe(&settings.firecracker, &jailer, dir.path(), accepted);
    let probed = runtime.block_on(probe);
    let is_fit = probed.is_ok();
    let found = match probed {
        Ok(probed) => probed.version.to_string(),
        Err(error) => error.to_string(),
    };
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    let has_kvm = kvm.is_ok();
    let kvm = kvm.map_or_else(
        |error| format!("/dev/kvm: {error}"),
        |_| "/dev/kvm opens".to_owned(),
    );
    let is_root = rustix::process::geteuid().is_root();
    Ok(vec![
        Check::new(
            "Firecracker",
            is_fit,
            Verdict::Missing,
            found,
            "a release for musl with its jailer beside it, named by --firecracker; docs/firecracker.md says which",
        ),
        Check::new(
            "KVM for Firecracker",
            has_kvm,
            Verdict::Missing,
            kvm,
            "a machine with hardware virtualisation; --runtime qemu needs none",
        ),
        Check::new(
            "privilege",
            is_root,
            Verdict::Missing,
            if is_root { "root" } else { "not root" },
            "run as root: the jailer needs it",
        ),
        mkfs(),
        guest_kernel(settings),
    ])
}

fn mkfs() -> Check {
    // It knows another word for that, and says so.
    let is_there = Command::new("mkfs.ext4").arg("--version").output().is_ok();
    Check::new(
        "mkfs.ext4",
        is_there,
        Verdict::Missing,
        if is_there { "is there" } else { "cannot be started" },
        "Debian: apt-get install e2fsprogs",
    )
}

fn guest_kernel(settings: &Resolved) -> Check {
    let given = settings.guest_kernel.as_ref();
    let (is_there, found) = match (kernel::is_made(settings), given) {
        (true, _) => (true, "made".to_owned()),
        (false, Some(dir)) if dir.join("boot").is_dir() => (true, format!("of {}", dir.display())),
        (false, Some(dir)) => (false, format!("{} holds no boot/", dir.display())),
        (false, None) if Path::new("/usr/bin/apt-get").exists() => {
            (true, "fetched by apt at the first start".to_owned())
        }
        (false, None) => (false, "none, and no apt to fetch it by".to_owned()),
    };
    Check::new(
        "kernel of microVMs",
        is_there,
        Verdict::Missing,
        found,
        "extract a kernel package of your distribution, and name the directory by --guest-kernel",
    )
}
