//! `atoll-launcher`: started by the daemon with a socket as standard input; of no use to anybody else.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "its standard error is the daemon's")]
use std::process::ExitCode;

fn main() -> ExitCode {
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
