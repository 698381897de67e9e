//! Who the server is, and that nobody listens.
use std::path::PathBuf;
use std::time::Duration;

use model::Secret;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sql::{Fault, OpenError, Postgres};
use testkit::services::postgres::{Postgres as Server, Setup};

use crate::server::{admin, migrate};

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[tokio::test]
async fn a_server_must_prove_who_it_is_where_that_is_asked_for() {
    if !Server::is_installed() {
        return;
    }
    let (ours, theirs) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &ours).unwrap();
    let setup = Setup {
        settings: [
            ("ssl", "on"),
            ("ssl_cert_file", "tls.crt"),
            ("ssl_key_file", "tls.key"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into(),
        files: vec![
            ("tls.crt".to_owned(), certificate.pem().into_bytes()),
            ("tls.key".to_owned(), key.serialize_pem().into_bytes()),
        ],
        ..Setup::default()
    };
    let server = Server::start_with(&setup).unwrap();
    server.create_database("secure", None).unwrap();
    migrate(&server, "secure").await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, authority: &CertifiedIssuer<'static, KeyPair>| {
        let path = directory.path().join(name);
        std::fs::write(&path, authority.as_ref().pem()).unwrap();
        Some(path)
    };
    let (ours, theirs) = (file("ours", &ours), file("theirs", &theirs));
    let config = |mode: &str, ca: Option<&PathBuf>, host: &str| sql::PostgresConfig {
        ca: ca.cloned(),
        acquire_timeout: Duration::from_secs(10),
        application_name: format!("by {mode}"),
        ..sql::PostgresConfig::new(Secret::new(format!(
            "{}?sslmode={mode}",
            server.url("secure").replace("127.0.0.1", host)
        )))
    };
    for (mode, ca, host) in [
        ("verify-full", &ours, "127.0.0.1"),
        ("verify-ca", &ours, "localhost"),
        ("require", &None, "127.0.0.1"),
        ("prefer", &None, "127.0.0.1"),
    ] {
        let store = Postgres::connect(&config(mode, ca.as_ref(), host)).await.unwrap();
        let encrypted: bool = sqlx::query_scalar(
            "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = $1",
        )
        .bind(format!("by {mode}"))
        .fetch_one(&mut admin(&server, "secure").await)
        .await
        .unwrap();
        assert!(encrypted, "{mode}");
        drop(store);
    }
    for (mode, ca, host) in [
        ("verify-full", &theirs, "127.0.0.1"),
        ("verify-full", &None, "127.0.0.1"),
        ("verify-full", &ours, "localhost"),
        ("verify-ca", &theirs, "127.0.0.1"),
    ] {
        let refused = Postgres::connect(&config(mode, ca.as_ref(), host)).await;
        assert!(
            matches!(refused, Err(OpenError::Away(Fault::Unreachable(_)))),
            "{mode}, {host}"
        );
    }
    let missing = config("verify-full", Some(&directory.path().join("none")), "127.0.0.1");
    let Err(OpenError::Config(error)) = Postgres::connect(&missing).await else {
        panic!("a file that is not there was read");
    };
    assert!(error.to_string().contains("none"), "{error}");
}
