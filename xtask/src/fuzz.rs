//! `cargo xtask fuzz`: the targets of `fuzz/`, each for a given time, from its checked-in seeds.
//!
//! They are built with the compiler that builds everything else: the instrumentation is LLVM's, and libFuzzer comes as
//! source. What is found is kept in the cache, and belongs into the seeds when it is mended.
use anyhow::{Context, Result};
use clap::Args;

use crate::shell::{cache, cargo, command, root, run, target_dir};

const TARGETS: [&str; 16] = [
    "host",
    "envelopes",
    "frames",
    "form",
    "metadata",
    "upload",
    "tar",
    "layer",
    "manifest",
    "line",
    "escape",
    "mux",
    "module",
    "boot",
    "dial",
    "volume",
];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// As cargo-fuzz has it, without a sanitizer: there is no `unsafe` in what is fuzzed.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// Longer inputs find nothing that shorter ones do not, and take longer.
const INPUT_BYTES_MAX: usize = 4096;

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only these targets; all when none is given.
    targets: Vec<String>,
}

/// Builds the targets and runs them one after another; the first that fails ends the run and names its input.
pub(crate) fn fuzz(options: &Options) -> Result<()> {
    let dir = target_dir().join("fuzz");
    run(cargo()
        .args([
            "build",
            "--release",
            "--locked",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--target",
            TRIPLE,
        ])
        .arg("--target-dir")
        .arg(&dir)
        .env("RUSTFLAGS", FLAGS))?;
    let chosen: Vec<&str> = if options.targets.is_empty() {
        TARGETS.to_vec()
    } else {
        options.targets.iter().map(String::as_str).collect()
    };
    for target in chosen {
        let found = cache().join("fuzz").join(target);
        std::fs::create_dir_all(&found)?;
        eprintln!("fuzz: {target} for {} s", options.seconds);
        run(command(dir.join(TRIPLE).join("release").join(target))
            .arg(&found)
            .arg(root().join("fuzz/seeds").join(target))
            .arg(format!("-artifact_prefix={}/", found.display()))
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-max_len={INPUT_BYTES_MAX}")))
        .with_context(|| format!("{target} does not hold; the input is in {}", found.display()))?;
    }
    Ok(())
}
