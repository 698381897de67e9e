//! CRIU's options, as Atoll's machines need them (`criu_opts` of its `images/rpc.proto`).
use std::os::fd::RawFd;

use super::child::IMAGES;
use super::wire::Writer;

/// The same for a dump and for a restore: what is dumped by one is restored by the other.
pub(crate) struct Options {
    message: Writer,
}

/// Deleted files that are open are written down with the images, up to this size, bytes; larger ones are a failure. They
/// are the machine's own disk space otherwise.
const GHOST_BYTES_MAX: u64 = 64 << 20;
/// `CLONE_NEWNET`: the network namespace is restored empty, and the host puts the machine's link into it.
const EMPTY_NETWORK: u64 = 0x4000_0000;
/// Errors and warnings.
const LOG_LEVEL: u64 = 2;
/// `criu_cg_mode`: whoever is restored is in the groups that CRIU was put into.
const LEAVE_CGROUPS: u64 = 0;
/// `criu_network_lock_method`: every process inside is stopped, and packets that come meanwhile are sent again.
const NO_NETWORK_LOCK: u64 = 3;

/// CRIU's log, among the images.
pub(crate) const LOG: &str = "criu.log";

impl Options {
    /// With images and log in the directory behind this descriptor of ours.
    pub(crate) fn new(images: RawFd) -> Self {
        let mut message = Writer::default();
        message.number(1, u64::from(images.unsigned_abs()));
        Self::with(message)
    }

    /// With images on the stage, and the log in the directory behind this descriptor of ours.
    pub(crate) fn staged(logs: RawFd) -> Self {
        let mut message = Writer::default();
        message
            // It must be there; none is -1.
            .number(1, u64::MAX)
            .number(17, u64::from(logs.unsigned_abs()))
            .bytes(68, IMAGES.as_bytes());
        Self::with(message)
    }

    fn with(mut message: Writer) -> Self {
        message
            // Connections, which a copy keeps as well where both ends are inside.
            .yes(5)
            // Sessions whose leader is not among the processes.
            .yes(7)
            // Locks of files.
            .yes(8)
            .number(9, LOG_LEVEL)
            .bytes(10, LOG.as_bytes())
            .yes(12)
            // Open files that have no name any more but others of the same file have.
            .yes(18)
            .number(34, LEAVE_CGROUPS)
            .number(35, GHOST_BYTES_MAX)
            .number(38, EMPTY_NETWORK)
            // Connections that nobody has accepted yet are closed.
            .yes(46)
            .number(64, NO_NETWORK_LOCK);
        Self { message }
    }

    /// Dumps the tree of this process, and lets it go on.
    pub(crate) fn of(mut self, pid: u32) -> Self {
        self.message.number(2, u64::from(pid)).yes(3);
        self
    }

    /// Restores below this root, as a child of CRIU's parent.
    pub(crate) fn below(mut self, root: &str) -> Self {
        self.message.bytes(13, root.as_bytes()).yes(26);
        self
    }

    /// A mount that is not CRIU's to make: on a dump, where it is and its name; on a restore, its name and where it is.
    pub(crate) fn external(mut self, left: &str, right: &str) -> Self {
        self.message.bytes(37, format!("mnt[{left}]:{right}").as_bytes());
        self
    }

    pub(crate) fn message(self) -> Vec<u8> {
        self.message.done()
    }
}
