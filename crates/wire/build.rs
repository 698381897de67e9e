//! Compiles `proto/` without any tool that would have to be installed.
use std::path::PathBuf;

use prost::Message;

const PROTOS: [&str; 2] = ["process.proto", "filesystem.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    if std::env::var_os("CARGO_FEATURE_ENVD").is_none() {
        return Ok(());
    }
    let descriptors =
        PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("descriptors.bin");
    std::fs::write(&descriptors, protox::compile(PROTOS, ["proto"])?.encode_to_vec())?;
    // The generator asks cargo to watch this file, which is newer than the run that makes it: cargo would compile the crate,
    // and all that use it, at every call.
    std::fs::File::options()
        .append(true)
        .open(&descriptors)?
        .set_modified(std::time::UNIX_EPOCH)?;
    connectrpc_build::Config::new()
        .descriptor_set(&descriptors)
        .files(&PROTOS)
        .include_file("envd.rs")
        .compile()?;
    Ok(())
}
