//! `atoll tls`, and the certificates of the TLS listener.
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use edge::tls::Authority;

use crate::out;
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
pub(crate) fn run(settings: &Resolved, path_only: bool, json: bool) -> Result<ExitCode> {
    let authority = authority(settings)?;
    let (path, domain) = (authority.ca_path(), &settings.domain);
    if json {
        out::json(&serde_json::json!({ "domain": domain, "certificate": path }))?;
    } else if path_only {
        out::line(path.display())?;
    } else {
        out::text(&advice(&path.display().to_string(), domain))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn advice(path: &str, domain: &str) -> String {
    format!(
        "\
The certificate of this server's own authority, for {domain} and names below it: {path}

Debian     cp {path} /usr/local/share/ca-certificates/atoll.crt && update-ca-certificates
Python     export SSL_CERT_FILE={path}
Node.js    export NODE_EXTRA_CA_CERTS={path}
curl       curl --cacert {path} …

Then: atoll up --tls-listen 127.0.0.1:443, and export E2B_DOMAIN={domain}
Names below {domain} must resolve to this machine.
"
    )
}
