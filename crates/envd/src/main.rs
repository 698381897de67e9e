//! The program `atoll-envd`; what it does is the library's.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    envd::run()
}
