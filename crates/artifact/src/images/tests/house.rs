//! A real registry on the loopback, and liars beside it.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::digest::Digest;
use crate::images::Images;
use crate::policy::{Policy, RegistryPolicy};
use crate::testing::{MANIFEST, Picture};

pub(super) const USER: &str = "ali";
pub(super) const PASSWORD: &str = "open sesame";
const HTPASSWD: &str = "ali:$2y$04$abcdefghijklmnopqrstuu/LVz6MZlItEy42I2juLihZ66HnQx/cy\n";

/// Why the tests that need a registry or root do not run here, said once by each.
pub(super) fn cannot() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("unpacks layers, run it as root");
    }
    let found = Command::new("docker-registry")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    found
        .is_err()
        .then_some("needs docker-registry, of the package of the same name")
}

/// Debian's registry, empty, with or without a password.
pub(super) struct Registry {
    child: Child,
    pub(super) address: SocketAddr,
    _dir: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    pub(super) async fn start(has_password: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap()
        };
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: '{address}'}}\n",
            dir.path().join("data").display()
        );
        if has_password {
            let path = dir.path().join("htpasswd");
            std::fs::write(&path, HTPASSWD).unwrap();
            config.push_str(&format!(
                "auth:\n  htpasswd: {{realm: test, path: {}}}\n",
                path.display()
            ));
        }
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve".as_ref(), file.as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self {
            child,
            address,
            _dir: dir,
        };
        for _ in 0..200 {
            if TcpStream::connect(address).await.is_ok() {
                return registry;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("docker-registry does not listen on {address}");
    }

    async fn send(&self, method: Method, url: &str, kind: &str, body: Vec<u8>) -> http::Response<Bytes> {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        use base64::Engine as _;
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::CONTENT_TYPE, kind)
            .header(header::AUTHORIZATION, format!("Basic {pair}"))
            .body(Full::new(body.into()))
            .unwrap();
        let (head, body) = client.request(request).await.unwrap().into_parts();
        http::Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    pub(super) async fn push_blob(&self, name: &str, bytes: &[u8]) {
        let url = format!("http://{}/v2/{name}/blobs/uploads/", self.address);
        let begun = self
            .send(Method::POST, &url, "application/octet-stream", Vec::new())
            .await;
        assert_eq!(begun.status(), StatusCode::ACCEPTED, "{:?}", begun.body());
        let to = begun.headers()[header::LOCATION].to_str().unwrap();
        let url = format!("{to}&digest={}", Digest::of(bytes));
        let done = self
            .send(Method::PUT, &url, "application/octet-stream", bytes.to_vec())
            .await;
        assert_eq!(done.status(), StatusCode::CREATED, "{:?}", done.body());
    }

    pub(super) async fn push_document(&self, name: &str, version: &str, kind: &str, bytes: &[u8]) {
        let url = format!("http://{}/v2/{name}/manifests/{version}", self.address);
        let done = self.send(Method::PUT, &url, kind, bytes.to_vec()).await;
        assert_eq!(done.status(), StatusCode::CREATED, "{:?}", done.body());
    }

    pub(super) async fn push(&self, name: &str, version: &str, picture: &Picture) {
        for blob in picture.blobs() {
            self.push_blob(name, blob).await;
        }
        self.push_document(name, version, MANIFEST, &picture.manifest)
            .await;
    }
}

/// Images in a directory of their own, and registries of the loopback that they may ask.
pub(super) struct House {
    pub(super) images: Images,
    pub(super) dir: TempDir,
}

impl House {
    pub(super) fn new(named: &[SocketAddr]) -> Self {
        Self::with(policy(named))
    }

    pub(super) fn with(policy: Policy) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path().join("images"), policy).unwrap();
        Self { images, dir }
    }

    /// Names below `layers`, without those of partial layers' process.
    pub(super) fn layers(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path().join("images/layers"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub(super) fn policy(named: &[SocketAddr]) -> Policy {
    Policy {
        registries: named
            .iter()
            .map(|address| (address.to_string(), RegistryPolicy::default()))
            .collect::<BTreeMap<_, _>>(),
        ..Policy::default()
    }
}

/// A way to a server that breaks off its answers after so many bytes, the first few times.
pub(super) struct Cutter {
    pub(super) address: SocketAddr,
    pub(super) cuts: Arc<AtomicUsize>,
}

impl Cutter {
    /// Cuts answers longer than `bytes`, `times` times.
    pub(super) async fn start(to: SocketAddr, bytes: usize, times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&cuts);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    let (mut near_read, mut near_write) = near.split();
                    let (mut far_read, mut far_write) = far.split();
                    let up = async {
                        let _ = tokio::io::copy(&mut near_read, &mut far_write).await;
                    };
                    let down = async {
                        let mut piece = vec![0; 8192];
                        let mut sent = 0;
                        while let Ok(read @ 1..) = far_read.read(&mut piece).await {
                            if sent + read > bytes && counted.load(Ordering::SeqCst) < times {
                                counted.fetch_add(1, Ordering::SeqCst);
                                return;
                            }
                            sent += read;
                            if near_write.write_all(&piece[..read]).await.is_err() {
                                return;
                            }
                        }
                    };
                    tokio::select! { () = up => {}, () = down => {} }
                });
            }
        });
        Self { address, cuts }
    }
}

/// A server that answers as a test says: it sees the head of a request, and says all of the answer. Each answer ends its connection.
pub(super) struct Liar {
    pub(super) address: SocketAddr,
    pub(super) heads: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Liar {
    pub(super) async fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let (seen, answer) = (Arc::clone(&heads), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    let mut piece = [0; 1024];
                    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                        match stream.read(&mut piece).await {
                            Ok(read @ 1..) => head.extend_from_slice(&piece[..read]),
                            _ => return,
                        }
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let said = answer(&head);
                    seen.lock().unwrap().push(head);
                    let _ = stream.write_all(&said).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { address, heads }
    }

    pub(super) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

/// An answer with a body.
pub(super) fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
