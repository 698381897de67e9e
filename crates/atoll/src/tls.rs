//! `atoll tls`, and the certificates of the TLS listener.
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use edge::tls::Authority;

use crate::settings::Resolved;

fn authority(settings: &Resolved) -> Result<Authority> {
    let dir = settings.data_dir.join("tls");
    Authority::open(&dir, &settings.domain)
        .with_context(|| format!("the certificate authority in {} cannot be opened", dir.display()))
}

/// What the TLS listener serves with.
pub(crate) fn server_config(settings: &Resolved) -> Result<Arc<rustls::ServerConfig>> {
    Ok(authority(settings)?.server_config(Arc::new(ports::clock::System))?)
}

/// Says how to trust the authority, or where its certificate is.
pub(crate) fn run(settings: &Resolved, path_only: bool) -> Result<ExitCode> {
    let authority = authority(settings)?;
    let path = authority.ca_path().display();
    if path_only {
        println!("{path}");
        return Ok(ExitCode::SUCCESS);
    }
    let domain = &settings.domain;
    println!("The certificate of this server's own authority, for {domain} and names below it: {path}");
    println!();
    println!("Debian     cp {path} /usr/local/share/ca-certificates/atoll.crt && update-ca-certificates");
    println!("Python     export SSL_CERT_FILE={path}");
    println!("Node.js    export NODE_EXTRA_CA_CERTS={path}");
    println!("curl       curl --cacert {path} …");
    println!();
    println!("Then: atoll up --tls-listen 127.0.0.1:443, and export E2B_DOMAIN={domain}");
    println!("Names below {domain} must resolve to this machine.");
    Ok(ExitCode::SUCCESS)
}
