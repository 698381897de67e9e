//! The command line of a machine's QEMU: a pure function of its shape.
//!
//! No text that a user chose is in it, and no path: numbers, names of our own, and descriptors of what it is given. It
//! starts standing, whatever is to become of it: memory is brought in, or it is let go, when everybody listens.
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::disk::{Format, Image};

/// What carries the guest's instructions out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator: everywhere, and many times slower.
    Tcg,
}

impl Accel {
    /// As QEMU calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

/// Whether memory comes from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// The kernel boots.
    Boot,
    /// A state is brought in before it goes on.
    Incoming,
}

/// All that a machine's command line depends on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shape {
    /// Which incarnation: for whoever looks at the host's processes.
    pub(crate) execution: model::ExecutionId,
    pub(crate) accel: Accel,
    pub(crate) memory: model::MiB,
    pub(crate) cpus: u32,
    pub(crate) kernel: RawFd,
    pub(crate) initrd: RawFd,
    /// What the kernel is told.
    pub(crate) append: String,
    /// Its disk: the lowest image first, and at the end the one that is written to.
    pub(crate) disk: Vec<Lent>,
    /// The descriptor by which its network is reached; `None`: its card is on a wire that leads nowhere.
    pub(crate) tap: Option<RawFd>,
    pub(crate) sockets: Listening,
    /// Which generation of its memory this is: another for each restore, so that the guest's kernel takes fresh randomness.
    pub(crate) generation: Uuid,
    pub(crate) begin: Begin,
}

/// An image, as a QEMU is given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lent {
    pub(crate) format: Format,
    /// To read it.
    pub(crate) read: RawFd,
    /// To read it and write to it; the uppermost has one alone.
    pub(crate) write: Option<RawFd>,
}

/// Sockets on which a QEMU listens, by the descriptors that it is given. It made none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listening {
    pub(crate) qmp: RawFd,
    pub(crate) line: RawFd,
    pub(crate) serial: RawFd,
}

/// Where QEMU listens for us. Nothing inside can reach these.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sockets {
    pub(crate) qmp: PathBuf,
    pub(crate) line: PathBuf,
    pub(crate) serial: PathBuf,
}

impl Sockets {
    /// In a directory of the machine's own.
    pub(crate) fn within(dir: &Path) -> Self {
        Self {
            qmp: dir.join("qmp"),
            line: dir.join("line"),
            serial: dir.join("serial"),
        }
    }

    /// The longest name of one.
    pub(crate) const NAME_MAX: usize = "/serial".len();

    /// Makes them: they are there before QEMU is, and it takes them over.
    pub(crate) fn listen(&self) -> io::Result<(Listening, Vec<OwnedFd>)> {
        let bind = |path: &Path| UnixListener::bind(path).map(OwnedFd::from);
        let (qmp, line, serial) = (bind(&self.qmp)?, bind(&self.line)?, bind(&self.serial)?);
        let listening = Listening {
            qmp: qmp.as_raw_fd(),
            line: line.as_raw_fd(),
            serial: serial.as_raw_fd(),
        };
        Ok((listening, vec![qmp, line, serial]))
    }
}

/// The disk's device, as QEMU and commands to it name it.
pub(crate) const DISK_DEVICE: &str = "disk";
/// The guest finds the line's port by this name.
pub(crate) const LINE_PORT: &str = "atoll.line";
/// What the translator keeps of its work, in MiB; by itself it is a gibibyte. When it is full it begins anew.
pub(crate) const TRANSLATED_MIB: u32 = 256;
/// Everything that a running QEMU has no need of: programs are not started, identities not changed.
pub(crate) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What a QEMU that was started with this id is called, for whoever looks at the host's processes, and for whoever has to find it
/// again.
pub(crate) fn process_name(id: &str) -> String {
    format!("atoll-{id}")
}

/// A set of descriptors, as a path that QEMU opens no file for.
pub(crate) fn set_path(set: u64) -> PathBuf {
    format!("/dev/fdset/{set}").into()
}

/// The name of the block node of a disk's `depth`-th image, from 0.
pub(crate) fn node_name(depth: usize) -> String {
    format!("disk{depth}")
}

/// The block node for an image, over the one below it.
///
/// What lies below comes from here, and not from what the image says of itself.
pub(crate) fn node(image: &Image, depth: usize, writable: bool) -> Value {
    let mut node = json!({
        "driver": match image.format { Format::Raw => "raw", Format::Qcow2 => "qcow2" },
        "node-name": node_name(depth),
        "read-only": !writable,
        "file": {
            "driver": "file",
            "filename": image.path,
            "read-only": !writable,
            "discard": "unmap",
        },
        "discard": "unmap",
    });
    if image.format == Format::Qcow2 {
        node["backing"] = match depth.checked_sub(1) {
            Some(below) => json!(node_name(below)),
            None => Value::Null,
        };
    }
    node
}

/// The block node for a new image that is to be laid on what a machine has.
pub(crate) fn overlay(image: &Image, depth: usize) -> Value {
    let mut node = node(image, depth, true);
    node["backing"] = Value::Null;
    node
}

fn accelerator(accel: Accel) -> String {
    match accel {
        Accel::Kvm => accel.name().to_owned(),
        Accel::Tcg => format!("{},tb-size={TRANSLATED_MIB}", accel.name()),
    }
}

/// A socket on which QEMU listens, and goes on when nobody comes.
pub(crate) fn socket(id: &str, listener: RawFd) -> String {
    format!("socket,id={id},fd={listener},server=on,wait=off")
}

/// Arguments for the images of a disk: a set of descriptors for each, numbered from below, and its node.
pub(crate) fn images(disk: &[Lent]) -> Vec<OsString> {
    let mut line = Line::default();
    for (depth, lent) in disk.iter().enumerate() {
        // One to write with is taken while it is written to, and one to read with from when it is sealed on.
        for fd in lent.write.into_iter().chain([lent.read]) {
            line.option("-add-fd", format!("fd={fd},set={depth}"));
        }
        let image = Image {
            path: set_path(depth as u64),
            format: lent.format,
        };
        line.option("-blockdev", node(&image, depth, lent.write.is_some()).to_string());
    }
    line.0
}

/// QEMU's arguments.
pub(crate) fn arguments(shape: &Shape) -> Vec<OsString> {
    let mut line = Line::default();
    line.option("-name", process_name(&shape.execution.to_string()));
    line.option("-M", "q35,vmport=off,sata=off,smbus=off");
    line.option("-accel", accelerator(shape.accel));
    line.option(
        "-cpu",
        match shape.accel {
            Accel::Kvm => "host",
            Accel::Tcg => "max",
        },
    );
    line.option("-m", format!("{}M", shape.memory.0));
    line.option("-smp", shape.cpus.to_string());
    for flag in ["-S", "-nodefaults", "-no-user-config", "-no-reboot"] {
        line.flag(flag);
    }
    line.option("-display", "none");
    line.option("-sandbox", SANDBOX);
    // What sleeps is never woken.
    line.option("-global", "ICH9-LPC.disable_s3=1");
    line.option("-global", "ICH9-LPC.disable_s4=1");
    line.file("-kernel", shape.kernel);
    line.file("-initrd", shape.initrd);
    line.option("-append", &*shape.append);
    line.socket("qmp", shape.sockets.qmp);
    line.option("-mon", "chardev=qmp,mode=control");
    line.socket("serial", shape.sockets.serial);
    line.option("-serial", "chardev:serial");
    line.disk(&shape.disk);
    line.option(
        "-netdev",
        match shape.tap {
            Some(tap) => format!("tap,id=net,fd={tap},vhost=off"),
            None => "user,id=net,restrict=on,ipv6=off".to_owned(),
        },
    );
    // The same for everybody: nobody is on a wire with anybody else.
    let mac = net::GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    line.device(&json!({ "driver": "virtio-net-pci", "netdev": "net", "mac": mac, "romfile": "" }));
    line.option("-object", "rng-builtin,id=rng");
    line.device(&json!({ "driver": "virtio-rng-pci", "rng": "rng" }));
    line.device(&json!({ "driver": "vmgenid", "guid": shape.generation.to_string() }));
    line.device(&json!({ "driver": "virtio-serial-pci", "id": "serials", "max_ports": 2 }));
    line.socket("line", shape.sockets.line);
    line.device(&json!({
        "driver": "virtserialport", "bus": "serials.0", "nr": 1, "chardev": "line", "name": LINE_PORT,
    }));
    if shape.begin == Begin::Incoming {
        line.option("-incoming", "defer");
    }
    line.0
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    /// One that QEMU opens by its own table of descriptors: everybody may read it.
    fn file(&mut self, name: &str, fd: RawFd) {
        self.option(name, format!("/proc/self/fd/{fd}"));
    }

    fn socket(&mut self, id: &str, listener: RawFd) {
        self.option("-chardev", socket(id, listener));
    }

    fn disk(&mut self, disk: &[Lent]) {
        self.0.extend(images(disk));
        let top = disk.len().saturating_sub(1);
        self.device(&json!({ "driver": "virtio-blk-pci", "id": DISK_DEVICE, "drive": node_name(top) }));
    }

    fn device(&mut self, device: &Value) {
        self.option("-device", device.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            execution: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
            accel: Accel::Tcg,
            memory: model::MiB(512),
            cpus: 2,
            kernel: 10,
            initrd: 11,
            append: "console=ttyS0".to_owned(),
            disk: vec![
                Lent {
                    format: Format::Raw,
                    read: 20,
                    write: None,
                },
                Lent {
                    format: Format::Qcow2,
                    read: 21,
                    write: None,
                },
                Lent {
                    format: Format::Qcow2,
                    read: 22,
                    write: Some(23),
                },
            ],
            tap: None,
            sockets: Listening {
                qmp: 12,
                line: 13,
                serial: 14,
            },
            generation: "5f9e7fd8-5a3f-4e1b-9d6b-0a8e6a6b0f11".parse().unwrap(),
            begin: Begin::Boot,
        }
    }

    #[test]
    fn the_whole_line_is_this() {
        let line: Vec<String> = arguments(&shape())
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect();
        let expected = [
            "-name",
            "atoll-01890a5d-ac96-774b-bcce-b302099a8057",
            "-M",
            "q35,vmport=off,sata=off,smbus=off",
            "-accel",
            "tcg,tb-size=256",
            "-cpu",
            "max",
            "-m",
            "512M",
            "-smp",
            "2",
            "-S",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-global",
            "ICH9-LPC.disable_s3=1",
            "-global",
            "ICH9-LPC.disable_s4=1",
            "-kernel",
            "/proc/self/fd/10",
            "-initrd",
            "/proc/self/fd/11",
            "-append",
            "console=ttyS0",
            "-chardev",
            "socket,id=qmp,fd=12,server=on,wait=off",
            "-mon",
            "chardev=qmp,mode=control",
            "-chardev",
            "socket,id=serial,fd=14,server=on,wait=off",
            "-serial",
            "chardev:serial",
            "-add-fd",
            "fd=20,set=0",
            "-blockdev",
            r#"{"discard":"unmap","driver":"raw","file":{"discard":"unmap","driver":"file","filename":"/dev/fdset/0","read-only":true},"node-name":"disk0","read-only":true}"#,
            "-add-fd",
            "fd=21,set=1",
            "-blockdev",
            r#"{"backing":"disk0","discard":"unmap","driver":"qcow2","file":{"discard":"unmap","driver":"file","filename":"/dev/fdset/1","read-only":true},"node-name":"disk1","read-only":true}"#,
            "-add-fd",
            "fd=23,set=2",
            "-add-fd",
            "fd=22,set=2",
            "-blockdev",
            r#"{"backing":"disk1","discard":"unmap","driver":"qcow2","file":{"discard":"unmap","driver":"file","filename":"/dev/fdset/2","read-only":false},"node-name":"disk2","read-only":false}"#,
            "-device",
            r#"{"drive":"disk2","driver":"virtio-blk-pci","id":"disk"}"#,
            "-netdev",
            "user,id=net,restrict=on,ipv6=off",
            "-device",
            r#"{"driver":"virtio-net-pci","mac":"06:00:ac:10:00:02","netdev":"net","romfile":""}"#,
            "-object",
            "rng-builtin,id=rng",
            "-device",
            r#"{"driver":"virtio-rng-pci","rng":"rng"}"#,
            "-device",
            r#"{"driver":"vmgenid","guid":"5f9e7fd8-5a3f-4e1b-9d6b-0a8e6a6b0f11"}"#,
            "-device",
            r#"{"driver":"virtio-serial-pci","id":"serials","max_ports":2}"#,
            "-chardev",
            "socket,id=line,fd=13,server=on,wait=off",
            "-device",
            r#"{"bus":"serials.0","chardev":"line","driver":"virtserialport","name":"atoll.line","nr":1}"#,
        ];
        assert_eq!(line, expected);
    }

    #[test]
    fn a_restore_differs_in_that_it_waits_for_its_memory() {
        let boot = arguments(&shape());
        let restore = arguments(&Shape {
            begin: Begin::Incoming,
            ..shape()
        });
        let (same, more) = restore.split_at(boot.len());
        assert_eq!((same, more), (&*boot, &["-incoming".into(), "defer".into()][..]));
    }

    #[test]
    fn a_network_is_a_descriptor_and_changes_nothing_that_the_guest_sees() {
        let (without, with) = (
            arguments(&shape()),
            arguments(&Shape {
                tap: Some(7),
                ..shape()
            }),
        );
        let differing: Vec<_> = without
            .iter()
            .zip(&with)
            .filter(|(one, two)| one != two)
            .collect();
        let (alone, wired): (OsString, OsString) = (
            "user,id=net,restrict=on,ipv6=off".into(),
            "tap,id=net,fd=7,vhost=off".into(),
        );
        assert_eq!((without.len(), differing), (with.len(), vec![(&alone, &wired)]));
    }

    #[test]
    fn hardware_is_shown_as_it_is() {
        let line = arguments(&Shape {
            accel: Accel::Kvm,
            ..shape()
        });
        let after = |name: &str| {
            let at = line.iter().position(|argument| argument == name).unwrap();
            line[at + 1].to_str().unwrap()
        };
        assert_eq!((after("-accel"), after("-cpu")), ("kvm", "host"));
    }
}
