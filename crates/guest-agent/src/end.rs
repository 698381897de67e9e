//! The end of the machine.
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::system::RebootCommand;

use crate::boot::MACHINE;

/// How the machine is told that it is over.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Power {
    /// Off, by ACPI.
    Off,
    /// A reset, which a VMM that has no power switch takes for the end.
    Reset,
}

/// Brings everything to the disk and ends. Returns only where the kernel refuses.
pub(crate) fn power_off(power: Power) {
    rustix::fs::sync();
    // Clean, so that the next boot has no journal to replay; where somebody still writes, the journal is what it is for.
    let _ = rustix::mount::mount_remount(MACHINE, MountFlags::RDONLY, c"");
    let _ = rustix::mount::unmount(MACHINE, UnmountFlags::DETACH);
    rustix::fs::sync();
    let command = match power {
        Power::Off => RebootCommand::PowerOff,
        Power::Reset => RebootCommand::Restart,
    };
    let _ = rustix::system::reboot(command);
}
