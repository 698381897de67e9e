//! `atoll-guest`: the first process of a microVM, which makes the machine and stays outside of it.
//!
//! ```text
//! boot      devices, modules, network, root disk
//! machine   a child in namespaces of its own, which becomes envd on the root disk
//! serve     streams of the host: to envd, to ports inside, to the agent
//!   serial, vsock   what carries them        resume, usage   what the agent does itself
//!   volumes         file systems of the host's, whose requests go over streams
//! end       the disk is synced and the power is off, whatever happened
//! ```
//!
//! **Invariants.** Nothing inside the machine can see this process, or reach envd's host-only socket as it does. It says why it
//! ends, on the console. Whatever it is sent is bounded. Until the machine is forked, it has one thread.
#![forbid(unsafe_code)]

mod boot;
mod console;
mod end;
mod file;
mod machine;
mod resume;
mod serial;
mod serve;
mod step;
mod usage;
mod volumes;
mod vsock;

use std::convert::Infallible;
use std::sync::Arc;

use guest::boot::LineKind;

use crate::console::say;
use crate::end::Power;
use crate::machine::Machine;
use crate::step::{At as _, Step};

fn main() -> std::process::ExitCode {
    if std::process::id() != 1 {
        say(format_args!(
            "this is the first process of a microVM, and of no other machine"
        ));
        return std::process::ExitCode::from(2);
    }
    std::panic::set_hook(Box::new(|panic| {
        say(format_args!("{panic}"));
        end::power_off(Power::Off);
    }));
    match run() {
        Ok(never) => match never {},
        Err(failed) => {
            say(format_args!("{failed}: {}", failed.source));
            end::power_off(Power::Off);
        }
    }
    std::process::ExitCode::FAILURE
}

/// Makes the machine, and serves the host until it ends.
fn run() -> Result<Infallible, Step> {
    boot::mount_kernel_views()?;
    console::take();
    let settings = boot::settings()?;
    boot::load_modules()?;
    boot::leave_initramfs()?;
    boot::bring_up_network(&settings)?;
    boot::mount_root(&settings)?;
    boot::furnish()?;
    let (machine, ready) = Machine::start(&settings)?;
    let machine = Arc::new(machine);
    let power = match settings.line {
        LineKind::Serial => Power::Off,
        // Firecracker knows no other end.
        LineKind::Vsock => Power::Reset,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // What blocks here is a sync or a name; one that waits for the disk must not keep out the next.
        .max_blocking_threads(4)
        .build()
        .at("starting the runtime")?;
    let why = runtime.block_on(async {
        let line = async {
            match settings.line {
                LineKind::Serial => serial::serve(&machine).await,
                LineKind::Vsock => vsock::serve(&machine).await,
            }
        };
        let why = tokio::select! {
            failed = line => match failed {
                Ok(never) => match never {},
                Err(failed) => format!("{failed}: {}", failed.source),
            },
            failed = machine.become_ready(ready) => format!("{failed}: {}", failed.source),
            status = machine.died() => format!("the machine's first process ended: {status}"),
            why = machine.told_to_end() => why,
        };
        machine.kill().await;
        // What is brought to disks from here on is the machine's own.
        machine.volumes.abandon();
        why
    });
    say(format_args!("{why}"));
    // Whatever still blocks, blocks on what is about to end.
    runtime.shutdown_background();
    end::power_off(power);
    Err(std::io::Error::other("the power is still on")).at("powering off")
}
