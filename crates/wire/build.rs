//! Compiles `proto/` without any tool that would have to be installed.
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    if std::env::var_os("CARGO_FEATURE_ENVD").is_some() {
        compile(&["process.proto", "filesystem.proto"], "envd")?;
    }
    if std::env::var_os("CARGO_FEATURE_NODE").is_some() {
        compile(&["node.proto"], "cluster")?;
    }
    Ok(())
}

/// Makes `{into}.rs`, which has them all.
fn compile(protos: &[&str], into: &str) -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let descriptors = out.join(format!("{into}.bin"));
    std::fs::write(&descriptors, protox::compile(protos, ["proto"])?.encode_to_vec())?;
    // The generator asks cargo to watch this file, which is newer than the run that makes it: cargo would compile the crate,
    // and all that use it, at every call.
    std::fs::File::options()
        .append(true)
        .open(&descriptors)?
        .set_modified(std::time::UNIX_EPOCH)?;
    connectrpc_build::Config::new()
        .descriptor_set(&descriptors)
        .files(protos)
        .include_file(format!("{into}.rs"))
        .compile()?;
    Ok(())
}
