//! `atoll-launcher`: started by the daemon with a socket as standard input; of no use to anybody else.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "its standard error is the daemon's")]
use std::process::ExitCode;

use container::launcher;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let is_called = |by: &str| std::path::Path::new(&name).file_name() == Some(std::ffi::OsStr::new(by));
    if is_called(launcher::TAR) {
        let error = launcher::tar(std::env::args().skip(1));
        eprintln!("atoll-launcher: becoming tar failed: {error}");
        return ExitCode::FAILURE;
    }
    if is_called(launcher::COPY) {
        return match launcher::copy() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("atoll-launcher: copying failed: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let served = linux::spawn::inherited(0)
        .map_err(|error| error.to_string())
        .and_then(|socket| {
            container::launcher::serve::serve(socket).map_err(|failed| {
                format!(
                    "{failed}: {}",
                    std::error::Error::source(&failed)
                        .map(ToString::to_string)
                        .unwrap_or_default()
                )
            })
        });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("atoll-launcher: {wrong}");
            ExitCode::FAILURE
        }
    }
}
