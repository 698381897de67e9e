use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::request::*;
use super::*;

const SOON: Duration = Duration::from_secs(10);

/// A Firecracker that answers every request with the same bytes, whole or not.
struct Liar {
    api: Api,
    /// What it was sent.
    heard: Arc<Mutex<Vec<u8>>>,
    _dir: tempfile::TempDir,
}

impl Liar {
    /// `endless` is said again and again after `says`; without it, it hangs up where `hangs_up`.
    fn new(says: &str, endless: Option<&str>, hangs_up: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let heard = Arc::<Mutex<Vec<u8>>>::default();
        let (says, endless, told) = (says.to_owned(), endless.map(str::to_owned), Arc::clone(&heard));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (says, endless, told) = (says.clone(), endless.clone(), Arc::clone(&told));
                tokio::spawn(async move {
                    let mut chunk = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
                        told.lock().unwrap().extend(&chunk[..read]);
                        if stream.write_all(says.as_bytes()).await.is_err() {
                            return;
                        }
                        while let Some(more) = &endless {
                            if stream.write_all(more.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                        if hangs_up {
                            return;
                        }
                    }
                });
            }
        });
        Self {
            api: Api::new(&socket),
            heard,
            _dir: dir,
        }
    }

    fn heard(&self) -> String {
        String::from_utf8(self.heard.lock().unwrap().clone()).unwrap()
    }
}

const DONE: &str = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";

#[tokio::test]
async fn what_is_asked_is_what_the_api_has() {
    let liar = Liar::new(DONE, None, false);
    let api = &liar.api;
    let check = |expected: &str| {
        let heard = std::mem::take(&mut *liar.heard.lock().unwrap());
        let heard = String::from_utf8(heard).unwrap();
        let (head, body) = heard.split_once("\r\n\r\n").unwrap();
        let line = head.lines().next().unwrap();
        assert_eq!(format!("{line} {body}"), expected);
        assert!(
            head.to_lowercase().contains("content-type: application/json"),
            "{head}"
        );
        assert!(!head.to_lowercase().contains("chunked"), "{head}");
    };
    let machine = MachineConfig {
        vcpu_count: 2,
        mem_size_mib: 128,
        track_dirty_pages: true,
    };
    api.machine_config(&machine).await.unwrap();
    check(r#"PUT /machine-config HTTP/1.1 {"vcpu_count":2,"mem_size_mib":128,"track_dirty_pages":true}"#);
    let source = BootSource {
        kernel_image_path: "/kernel".into(),
        initrd_path: "/initrd".into(),
        boot_args: "quiet".to_owned(),
    };
    api.boot_source(&source).await.unwrap();
    check(
        r#"PUT /boot-source HTTP/1.1 {"kernel_image_path":"/kernel","initrd_path":"/initrd","boot_args":"quiet"}"#,
    );
    let drive = Drive {
        drive_id: "root",
        path_on_host: "/disk".into(),
        is_root_device: true,
        is_read_only: false,
        cache_type: CacheType::Unsafe,
        io_engine: IoEngine::Sync,
    };
    api.drive(&drive).await.unwrap();
    check(
        r#"PUT /drives/root HTTP/1.1 {"drive_id":"root","path_on_host":"/disk","is_root_device":true,"is_read_only":false,"cache_type":"Unsafe","io_engine":"Sync"}"#,
    );
    let change = DriveChange {
        drive_id: "root",
        path_on_host: "/disk".into(),
    };
    api.change_drive(&change).await.unwrap();
    check(r#"PATCH /drives/root HTTP/1.1 {"drive_id":"root","path_on_host":"/disk"}"#);
    let interface = NetworkInterface {
        iface_id: "eth0",
        guest_mac: "06:00:ac:10:00:02".to_owned(),
        host_dev_name: "tap0".to_owned(),
    };
    api.network_interface(&interface).await.unwrap();
    check(
        r#"PUT /network-interfaces/eth0 HTTP/1.1 {"iface_id":"eth0","guest_mac":"06:00:ac:10:00:02","host_dev_name":"tap0"}"#,
    );
    let mmds = MmdsConfig {
        version: MmdsVersion::V2,
        network_interfaces: vec!["eth0"],
    };
    api.mmds_config(&mmds).await.unwrap();
    check(r#"PUT /mmds/config HTTP/1.1 {"version":"V2","network_interfaces":["eth0"]}"#);
    api.mmds(&serde_json::json!({ "latest": {} })).await.unwrap();
    check(r#"PUT /mmds HTTP/1.1 {"latest":{}}"#);
    let vsock = Vsock {
        guest_cid: 3,
        uds_path: "/run/v.sock".into(),
    };
    api.vsock(&vsock).await.unwrap();
    check(r#"PUT /vsock HTTP/1.1 {"guest_cid":3,"uds_path":"/run/v.sock"}"#);
    api.entropy().await.unwrap();
    check("PUT /entropy HTTP/1.1 {}");
    api.start().await.unwrap();
    check(r#"PUT /actions HTTP/1.1 {"action_type":"InstanceStart"}"#);
    api.pause().await.unwrap();
    check(r#"PATCH /vm HTTP/1.1 {"state":"Paused"}"#);
    api.resume().await.unwrap();
    check(r#"PATCH /vm HTTP/1.1 {"state":"Resumed"}"#);
    let create = SnapshotCreate {
        snapshot_type: SnapshotType::Diff,
        snapshot_path: "/out/state".into(),
        mem_file_path: "/out/memory".into(),
    };
    api.snapshot(&create).await.unwrap();
    check(
        r#"PUT /snapshot/create HTTP/1.1 {"snapshot_type":"Diff","snapshot_path":"/out/state","mem_file_path":"/out/memory"}"#,
    );
    let load = SnapshotLoad {
        snapshot_path: "/state".into(),
        mem_backend: MemBackend {
            backend_type: BackendType::File,
            backend_path: "/memory".into(),
        },
        resume_vm: false,
        clock_realtime: true,
        track_dirty_pages: true,
    };
    api.load(&load).await.unwrap();
    check(
        r#"PUT /snapshot/load HTTP/1.1 {"snapshot_path":"/state","mem_backend":{"backend_type":"File","backend_path":"/memory"},"resume_vm":false,"clock_realtime":true,"track_dirty_pages":true}"#,
    );
}

fn told(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn what_is_told_is_understood() {
    let body = r#"{"app_name":"Firecracker","id":"vm","state":"Not started","vmm_version":"1.16.2"}"#;
    let instance = Liar::new(&told(body), None, false)
        .api
        .instance(SOON)
        .await
        .unwrap();
    assert_eq!(
        (instance.state, &*instance.vmm_version, &*instance.id),
        (InstanceState::NotStarted, "1.16.2", "vm")
    );
    let version = told("{\"firecracker_version\":\"1.16.2\\u001b[31m\"}");
    let version = Liar::new(&version, None, true).api.version().await.unwrap();
    assert_eq!(version, "1.16.2 [31m");
}

#[tokio::test]
async fn a_connection_serves_again_and_one_that_is_gone_is_made_anew() {
    let keeps = Liar::new(DONE, None, false);
    let hangs_up = Liar::new(DONE, None, true);
    for liar in [&keeps, &hangs_up] {
        for _ in 0..3 {
            liar.api.pause().await.unwrap();
        }
        assert_eq!(liar.heard().matches("PATCH /vm").count(), 3);
    }
}

#[tokio::test]
async fn a_fault_is_told_in_plain_words_and_no_more_of_it_than_is_read() {
    let refused = |body: String| async move {
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        match Liar::new(&answer, None, false).api.start().await.unwrap_err() {
            ApiError::Refused { status, fault, .. } => (status, fault),
            other => panic!("{other}"),
        }
    };
    let said = r#"{"fault_message":"no\nsuch \u001b[1mkernel "}"#;
    assert_eq!(
        refused(said.to_owned()).await,
        (400, "no such  [1mkernel".to_owned())
    );
    assert_eq!(refused("boom".to_owned()).await, (400, "boom".to_owned()));
    let long = format!(r#"{{"fault_message":"{}"}}"#, "ü".repeat(30_000));
    assert_eq!(refused(long).await.1.chars().count(), FAULT_CHARS_MAX);
    let error = Liar::new(
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        None,
        false,
    )
    .api
    .pause()
    .await
    .unwrap_err();
    assert_eq!(error.to_string(), "PATCH /vm: Firecracker refused it with 400: ");
}

async fn fails(liar: Liar) -> ApiError {
    let asked = tokio::time::timeout(Duration::from_secs(30), liar.api.instance(SOON)).await;
    asked.expect("a deadline holds").unwrap_err()
}

#[tokio::test]
async fn a_body_without_end_is_not_read_to_its_end() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let error = fails(Liar::new(chunked, Some("400\r\n"), false)).await;
    assert!(matches!(error, ApiError::Garbled { .. }), "{error}");
    let chunk = format!("400\r\n{}\r\n", "x".repeat(0x400));
    let error = fails(Liar::new(chunked, Some(&chunk), false)).await;
    assert!(matches!(error, ApiError::Endless { .. }), "{error}");
    // Without a length it lasts until the other side hangs up.
    let error = fails(Liar::new("HTTP/1.1 200 OK\r\n\r\n", Some("x"), false)).await;
    assert!(matches!(error, ApiError::Endless { .. }), "{error}");
}

#[tokio::test]
async fn heads_without_end_are_not_read_to_their_end() {
    for more in ["x: y\r\n", "x"] {
        let error = fails(Liar::new("HTTP/1.1 200 OK\r\nx: ", Some(more), false)).await;
        assert!(matches!(error, ApiError::Garbled { .. }), "{error}");
    }
}

#[tokio::test]
async fn lies_about_the_length_are_found_out() {
    let long = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}";
    let error = fails(Liar::new(long, None, true)).await;
    assert!(matches!(error, ApiError::Garbled { .. }), "{error}");
    let huge = "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n";
    let error = fails(Liar::new(huge, Some("x"), false)).await;
    assert!(
        matches!(error, ApiError::Garbled { .. } | ApiError::Endless { .. }),
        "{error}"
    );
    let large = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n";
    let error = fails(Liar::new(large, Some("x"), false)).await;
    assert!(matches!(error, ApiError::Endless { .. }), "{error}");
    // What comes after an answer is no answer to the next question.
    let short = Liar::new(&format!("{DONE}{DONE}"), None, false);
    short.api.pause().await.unwrap();
    let _ = short.api.pause().await;
    let short = Liar::new("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}}}", None, false);
    assert!(matches!(fails(short).await, ApiError::Garbled { .. }));
}

#[tokio::test]
async fn garbage_and_silence_are_told_apart() {
    let error = fails(Liar::new("SSH-2.0-OpenSSH\r\n\r\n", None, false)).await;
    assert!(matches!(error, ApiError::Garbled { .. }), "{error}");
    let error = fails(Liar::new("", None, true)).await;
    assert!(matches!(error, ApiError::Garbled { .. }), "{error}");
    let nobody = Api::new(&PathBuf::from("/nowhere/api.sock"));
    let error = nobody.pause().await.unwrap_err();
    assert!(matches!(error, ApiError::Gone { .. }), "{error}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotConnected);
    let silent = Liar::new("", None, false);
    let error = silent.api.instance(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, ApiError::Late { .. }), "{error}");
    // The one that was given up is not waited for by the next.
    let error = silent.api.instance(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, ApiError::Late { .. }), "{error}");
}
