//! Which of a machine's mounts CRIU makes itself, and which it is given.
use std::collections::BTreeSet;

/// A mount that is given, by the place where it is in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    /// Where it is mounted.
    pub(crate) target: String,
    /// What is given.
    pub(crate) what: What,
}

/// What a given mount is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// A device node.
    Node(String),
    /// A directory that covers another, of these names.
    Cover(&'static str),
    /// One of those that a root is assembled of.
    Part,
}

/// File systems that a machine makes for itself: CRIU makes them anew.
const OWN: [&str; 5] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue"];
/// What covers more than one directory, or shows parts of one; see `mask` of `boot.rs`.
const SHOWN: [(&str, &str); 2] = [("/sys/class", "class"), ("/sys/devices", "devices")];

/// Sorts the mounts of a machine, as `/proc/<pid>/mountinfo` tells them
/// ([proc_pid_mountinfo(5)](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)). All of them were made when it
/// booted: nothing inside may mount.
pub(crate) fn given(mountinfo: &str) -> Vec<Given> {
    let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(Mount::of).collect();
    // A file system of which the machine sees the top is its own; of others it sees a part that was bound.
    let whole: BTreeSet<&str> = mounts
        .iter()
        .filter(|mount| mount.root == "/" && OWN.contains(&mount.kind))
        .map(|mount| mount.device)
        .collect();
    mounts
        .iter()
        .filter(|mount| mount.target != "/")
        .filter_map(|mount| {
            let what = if let Some(node) = mount.node(&whole) {
                What::Node(node.to_owned())
            } else if let Some(cover) = mount.cover() {
                What::Cover(cover)
            } else if whole.contains(mount.device) {
                return None;
            } else {
                What::Part
            };
            Some(Given {
                target: unescaped(mount.target),
                what,
            })
        })
        .collect()
}

/// A path as the kernel tells it: blanks and backslashes as three octal digits.
fn unescaped(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Mount<'a> {
    device: &'a str,
    root: &'a str,
    target: &'a str,
    kind: &'a str,
}

impl<'a> Mount<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(2);
        Some(Self {
            device: fields.next()?,
            root: fields.next()?,
            target: fields.next()?,
            kind: after.split(' ').next()?,
        })
    }

    /// The device node that it is, if it is one.
    fn node(&self, whole: &BTreeSet<&str>) -> Option<&'a str> {
        let is_node = self.kind == "tmpfs" && !whole.contains(self.device);
        self.root.strip_prefix('/').filter(|_| is_node)
    }

    fn cover(&self) -> Option<&'static str> {
        let below = self.target.starts_with("/proc/") || self.target.starts_with("/sys/");
        if self.kind != "tmpfs" || self.root != "/" || !below {
            return None;
        }
        let shown = SHOWN.iter().find(|(target, _)| *target == self.target);
        Some(shown.map_or(super::child::EMPTY, |(_, name)| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_bound_from_outside_is_given_and_the_rest_is_made_anew() {
        let mountinfo = "\
56 46 0:42 / / rw - overlay none rw
61 56 0:45 / /usr rw - overlay none rw
53 52 254:0 /data/agent/1 /run/atoll/agent ro - ext4 /dev/vda rw
52 56 0:48 / /run rw - tmpfs tmpfs rw
57 56 0:49 / /proc rw - proc proc rw
62 56 0:50 / /sys ro - sysfs sysfs ro
63 56 0:51 / /dev rw - tmpfs tmpfs rw
64 63 0:40 /null /dev/null rw - tmpfs tmpfs rw
73 63 0:52 / /dev/pts rw - devpts devpts rw
75 63 0:41 / /dev/mqueue rw - mqueue mqueue rw
76 57 0:40 /null /proc/cmdline rw - tmpfs tmpfs rw
90 57 0:54 / /proc/acpi ro - tmpfs tmpfs ro
97 62 0:54 / /sys/block ro - tmpfs tmpfs ro
106 62 0:55 / /sys/class ro - tmpfs tmpfs ro
105 106 0:50 /class/net /sys/class/net ro - sysfs sysfs ro
110 57 0:49 /sys /proc/sys ro - proc proc rw
47 110 0:48 /atoll/boot_id /proc/sys/kernel/random/boot_id rw - tmpfs tmpfs rw
48 56 7:3 / /mnt/my\\040data rw - ext4 /dev/loop3 rw
";
        let node = || What::Node("null".to_owned());
        let found: Vec<(String, What)> = given(mountinfo)
            .into_iter()
            .map(|given| (given.target, given.what))
            .collect();
        let expected = [
            ("/usr", What::Part),
            ("/run/atoll/agent", What::Part),
            ("/dev/null", node()),
            ("/proc/cmdline", node()),
            ("/proc/acpi", What::Cover("empty")),
            ("/sys/block", What::Cover("empty")),
            ("/sys/class", What::Cover("class")),
            ("/mnt/my data", What::Part),
        ];
        assert_eq!(found, expected.map(|(target, what)| (target.to_owned(), what)));
    }
}
