//! The TLS listener and its authority.
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use edge::tls::Authority;
use http::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ports::Clock;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::client::{Answer, bare, get, host};
use crate::house::House;

async fn listen(house: &House, dir: &Path, api: Option<SocketAddr>, clock: Arc<dyn Clock>) -> SocketAddr {
    let config = Authority::open(dir, "atoll.localhost")
        .unwrap()
        .server_config(clock)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(
        house
            .edge
            .clone()
            .serve_tls(listener, config, api, house.shutdown.clone()),
    );
    address
}

/// A TLS connection of a client that trusts the authority alone.
async fn handshake(
    address: SocketAddr,
    ca: &Path,
    name: &str,
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

fn system() -> Arc<dyn Clock> {
    Arc::new(ports::clock::System)
}

#[tokio::test]
async fn sandboxes_have_names_below_the_domain_over_http_1_and_2() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let address = listen(&house, dir.path(), None, system()).await;
    let ca = Authority::open(dir.path(), "atoll.localhost")
        .unwrap()
        .ca_path()
        .to_owned();
    let name = host(&route, 8000);

    let stream = handshake(address, &ca, &name, b"http/1.1").await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = Answer::of(
        sender
            .send_request(bare(get(&route, 8000, "/one")))
            .await
            .unwrap(),
    )
    .await;
    assert!(answer.text().starts_with("GET /one\n"));

    let stream = handshake(address, &ca, &name, b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = bare(Request::get(format!("https://{name}/two")));
    let answer = Answer::of(sender.send_request(request).await.unwrap()).await;
    assert!(answer.text().starts_with("GET /two\n"));
}

#[tokio::test]
async fn the_certificate_speaks_for_this_machine_and_for_nobody_else() {
    let house = House::open().await;
    let dir = tempfile::tempdir().unwrap();
    let address = listen(&house, dir.path(), None, system()).await;
    let ca = dir.path().join("atoll.localhost.ca.pem");
    for name in ["atoll.localhost", "api.atoll.localhost", "localhost", "127.0.0.1"] {
        assert!(handshake(address, &ca, name, b"h2").await.is_ok(), "{name}");
    }
    for name in ["example.com", "a.b.atoll.localhost"] {
        assert!(handshake(address, &ca, name, b"h2").await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn the_api_has_a_name_beside_the_sandboxes() {
    let house = House::open().await;
    // Any server will do for the API.
    house.guest.echo(3000).await;
    let api = house.guest.address_of(3000);
    let dir = tempfile::tempdir().unwrap();
    let address = listen(&house, dir.path(), Some(api), system()).await;
    let ca = dir.path().join("atoll.localhost.ca.pem");
    let stream = handshake(address, &ca, "api.atoll.localhost", b"http/1.1")
        .await
        .unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/v2/sandboxes")
        .header("host", "api.atoll.localhost:8443")
        .header("x-api-key", "k");
    let answer = Answer::of(sender.send_request(bare(request)).await.unwrap()).await;
    assert!(answer.text().starts_with("GET /v2/sandboxes\n") && answer.text().contains("x-api-key: k\n"));
    assert_eq!(house.guest.dials(), 0);
}

#[tokio::test]
async fn the_authority_is_made_once_and_its_key_is_its_owners() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("tls");
    let first = Authority::open(&dir, "Atoll.Localhost").unwrap();
    let pem = std::fs::read(first.ca_path()).unwrap();
    let again = Authority::open(&dir, "atoll.localhost").unwrap();
    assert_eq!(std::fs::read(again.ca_path()).unwrap(), pem);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.join("atoll.localhost.ca.key")), 0o600);
    assert_eq!(mode(&dir), 0o700);
    // A crash between the two files leaves a key, and the next start goes on from there.
    std::fs::remove_file(again.ca_path()).unwrap();
    assert!(
        Authority::open(&dir, "atoll.localhost")
            .unwrap()
            .ca_path()
            .exists()
    );
    std::fs::write(dir.join("atoll.localhost.ca.key"), "no key").unwrap();
    assert!(Authority::open(&dir, "atoll.localhost").is_err());
}

#[test]
fn an_authority_is_for_a_domain() {
    let dir = tempfile::tempdir().unwrap();
    for domain in ["", "../x", "a/b", ".x", "x.", "-x", "ex ample", "exämple.com"] {
        assert!(Authority::open(dir.path(), domain).is_err(), "{domain}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

struct Hands(Mutex<SystemTime>);

impl Clock for Hands {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_ends() {
    let house = House::open().await;
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Hands(Mutex::new(
        SystemTime::now() - Duration::from_secs(61 * 24 * 60 * 60),
    )));
    let address = listen(&house, dir.path(), None, clock.clone()).await;
    let ca = dir.path().join("atoll.localhost.ca.pem");
    let served = async || {
        let stream = handshake(address, &ca, "localhost", b"h2").await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0]
            .clone()
            .into_owned()
    };
    let first = served().await;
    assert_eq!(served().await, first);
    *clock.0.lock().unwrap() = SystemTime::now();
    assert_ne!(served().await, first);
}
