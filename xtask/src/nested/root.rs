//! What the house's machine boots from: a root of Debian's packages with a kernel's modules, and an initramfs that finds it.
//! Sandboxes' template `base` is made of the same packages, inside.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell::{command, read, run};

/// What the house needs, and what `base` offers.
const PACKAGES: [&str; 15] = [
    "busybox-static",
    "ca-certificates",
    "curl",
    "e2fsprogs",
    "git",
    "iproute2",
    "kmod",
    "nftables",
    "procps",
    "python3",
    "python3-pip",
    "util-linux",
    "util-linux-extra",
    "xfsprogs",
    "xz-utils",
];
/// Modules without which there is no root, in the order in which they are asked for.
const TO_FIND_THE_ROOT: [&str; 4] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];
const INIT: &str = include_str!("initrd.sh");
/// With room for what the house writes outside its data.
const DISK: &str = "4G";
/// Last of what is made: all of it is there.
const STAMP: &str = "made";

/// Where everything of it lies.
pub(super) struct Root {
    dir: PathBuf,
    release: String,
}

impl Root {
    /// The one below `dir`, made now if there is none of this kernel and these packages.
    pub(super) fn have(dir: &Path, package: &Path) -> Result<Root> {
        let root = Root {
            dir: dir.to_owned(),
            release: release(package)?,
        };
        let stamp = format!("{} {} {}\n{INIT}", root.release, PACKAGES.join(","), suite()?);
        if fs::read_to_string(dir.join(STAMP)).is_ok_and(|made| made == stamp) {
            return Ok(root);
        }
        eprintln!("nested: making a machine's root of Debian's packages, once");
        let _ = fs::remove_file(dir.join(STAMP));
        let tree = dir.join("root");
        for old in [&tree, &dir.join("initrd.d")] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| format!("cannot clear {}", old.display()))?;
            }
        }
        fs::create_dir_all(dir)?;
        run(command("mmdebstrap")
            .args(["--quiet", "--variant=minbase", "--include"])
            .arg(PACKAGES.join(","))
            .arg(suite()?)
            .arg(&tree))?;
        root.add_kernel(package, &tree)?;
        root.make_initrd(&tree)?;
        make_disk(&tree, &root.disk(), DISK)?;
        fs::remove_dir_all(&tree)?;
        fs::write(dir.join(STAMP), stamp)?;
        Ok(root)
    }

    /// The disk; it is not to be written to.
    pub(super) fn disk(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }

    /// The kernel.
    pub(super) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initramfs.
    pub(super) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// Where runs have their own.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The kernel's package, as microVMs' kernel too, and an index by which modules find each other.
    fn add_kernel(&self, package: &Path, tree: &Path) -> Result<()> {
        let vmlinuz = format!("vmlinuz-{}", self.release);
        let config = format!("config-{}", self.release);
        for file in [&vmlinuz, &config] {
            fs::copy(package.join("boot").join(file), tree.join("boot").join(file))
                .with_context(|| format!("cannot copy the kernel's {file}"))?;
        }
        fs::copy(package.join("boot").join(&vmlinuz), self.kernel())?;
        let modules = modules(package, &self.release);
        let to = tree.join("usr/lib/modules");
        fs::create_dir_all(&to)?;
        run(command("cp").arg("-a").arg(modules).arg(&to))?;
        run(command("chroot").arg(tree).args(["depmod", &self.release]))
    }

    fn make_initrd(&self, tree: &Path) -> Result<()> {
        let staged = self.dir.join("initrd.d");
        for dir in ["bin", "dev", "modules", "root"] {
            fs::create_dir_all(staged.join(dir))?;
        }
        let busybox = staged.join("bin/busybox");
        fs::copy(tree.join("usr/bin/busybox"), &busybox)
            .context("the package busybox-static has no busybox")?;
        let init = staged.join("init");
        fs::write(&init, INIT)?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        let modules = tree.join("usr/lib/modules").join(&self.release);
        let index = fs::read_to_string(modules.join("modules.dep"))?;
        let mut order = String::new();
        for path in needed(&index, &TO_FIND_THE_ROOT) {
            let name = path.rsplit('/').next().unwrap_or(path);
            fs::copy(modules.join(path), staged.join("modules").join(name))?;
            order.push_str(name);
            order.push('\n');
        }
        fs::write(staged.join("modules/order"), order)?;
        let files = read(Command::new("find").arg(".").current_dir(&staged))?;
        let mut cpio = Command::new(&busybox);
        cpio.args(["cpio", "-o", "-H", "newc", "-F"])
            .arg(self.initrd())
            .current_dir(&staged)
            .stdin(Stdio::piped());
        let mut cpio = cpio.spawn().context("cannot run busybox")?;
        let mut names = cpio.stdin.take().context("its input is piped")?;
        names.write_all(files.as_bytes())?;
        drop(names);
        if !cpio.wait()?.success() {
            bail!("busybox could not make {}", self.initrd().display());
        }
        fs::remove_dir_all(&staged)?;
        Ok(())
    }
}

/// Makes a disk of a directory.
pub(super) fn make_disk(tree: &Path, disk: &Path, size: &str) -> Result<()> {
    let _ = fs::remove_file(disk);
    run(command("mkfs.ext4")
        .args(["-q", "-F", "-O", "^has_journal", "-d"])
        .arg(tree)
        .arg(disk)
        .arg(size))
}

/// The kernel's, of the one kernel of a package.
fn release(package: &Path) -> Result<String> {
    let boot = package.join("boot");
    fs::read_dir(&boot)
        .with_context(|| format!("cannot read {}", boot.display()))?
        .flatten()
        .find_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
        .with_context(|| format!("there is no vmlinuz in {}", boot.display()))
}

fn modules(package: &Path, release: &str) -> PathBuf {
    [package.join("lib/modules"), package.join("usr/lib/modules")]
        .map(|dir| dir.join(release))
        .into_iter()
        .find(|dir| dir.is_dir())
        .unwrap_or_else(|| package.join("lib/modules").join(release))
}

/// This machine's own suite: programs that were built here run there.
fn suite() -> Result<String> {
    let told = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    told.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release names no suite of Debian's")
}

/// Paths of modules and of all that they need, each after what it needs. What is built into the kernel is in no index.
fn needed<'a>(index: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let name_of = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split(".ko").next().unwrap_or(file).replace('-', "_")
    };
    let lines = index.lines().filter_map(|line| line.split_once(':'));
    let known: BTreeMap<String, (&str, &str)> = lines
        .map(|(path, needs)| (name_of(path), (path, needs)))
        .collect();
    let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
    for name in wanted {
        let Some((path, needs)) = known.get(*name) else {
            continue;
        };
        // depmod(8) tells all of them, the first needed last.
        for path in needs.split_ascii_whitespace().rev().chain([*path]) {
            if seen.insert(path) {
                order.push(path);
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let index = "k/virtio.ko:\nk/virtio_ring.ko: k/virtio.ko\nk/virtio-pci.ko.xz: k/virtio_ring.ko k/virtio.ko\n\
                     k/virtio_blk.ko: k/virtio_ring.ko k/virtio.ko\nk/other.ko:\n";
        assert_eq!(
            needed(index, &["virtio_pci", "built_in", "virtio_blk"]),
            [
                "k/virtio.ko",
                "k/virtio_ring.ko",
                "k/virtio-pci.ko.xz",
                "k/virtio_blk.ko"
            ]
        );
    }
}
