//! Volumes and their content, over files in memory.
use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use model::{MiB, Secret, Volume, VolumeId, VolumeState};
use ports::blobs::ByteStream;
use ports::volumes::{FileError, FileKind, FileStat, Ownership};
use ports::{VolumeError, VolumeFiles, VolumeManager};

use super::*;

/// Volumes of all teams, and files without directories.
#[derive(Default)]
pub(super) struct Volumes {
    volumes: Mutex<Vec<Volume>>,
    files: Mutex<BTreeMap<String, (Vec<u8>, Ownership)>>,
}

impl Volumes {
    fn owned(&self, team: TeamId, id: VolumeId) -> Result<Volume, VolumeError> {
        let volumes = self.volumes.lock().unwrap();
        let found = volumes
            .iter()
            .find(|volume| volume.id == id && volume.team == team);
        found.cloned().ok_or(VolumeError::NotFound)
    }
}

#[async_trait]
impl VolumeManager for Volumes {
    async fn create(&self, team: TeamId, name: &str) -> Result<Volume, VolumeError> {
        let mut volumes = self.volumes.lock().unwrap();
        if volumes
            .iter()
            .any(|volume| volume.team == team && volume.name == name)
        {
            return Err(VolumeError::Exists(name.to_owned()));
        }
        volumes.push(Volume {
            id: VolumeId::random(),
            team,
            name: name.to_owned(),
            size: MiB(1),
            created_at: SystemTime::UNIX_EPOCH,
            home: None,
            state: VolumeState::Ready,
            version: 0,
        });
        Ok(volumes.last().unwrap().clone())
    }
    async fn list(&self, team: TeamId) -> Result<Vec<Volume>, VolumeError> {
        let volumes = self.volumes.lock().unwrap();
        Ok(volumes
            .iter()
            .filter(|volume| volume.team == team)
            .cloned()
            .collect())
    }
    async fn get(&self, team: TeamId, id: VolumeId) -> Result<Volume, VolumeError> {
        self.owned(team, id)
    }
    async fn delete(&self, team: TeamId, id: VolumeId) -> Result<(), VolumeError> {
        let volume = self.owned(team, id)?;
        if volume.name == "used" {
            return Err(VolumeError::InUse {
                name: volume.name,
                sandbox: SandboxId::random(),
            });
        }
        self.volumes.lock().unwrap().retain(|volume| volume.id != id);
        Ok(())
    }
    async fn token(&self, volume: &Volume) -> Result<Secret<String>, VolumeError> {
        Ok(Secret::new(format!("token-{}", volume.id)))
    }
    async fn admits(&self, id: VolumeId, token: &str) -> Result<bool, VolumeError> {
        Ok(token == format!("token-{id}"))
    }
}

fn stat(path: &str, (bytes, ownership): &(Vec<u8>, Ownership)) -> FileStat {
    FileStat {
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        path: path.to_owned(),
        kind: FileKind::File,
        size: bytes.len() as u64,
        mode: 0o100_000 | ownership.mode.unwrap_or(0o644),
        uid: ownership.uid.unwrap_or(0),
        gid: ownership.gid.unwrap_or(0),
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        target: None,
    }
}

#[async_trait]
impl VolumeFiles for Volumes {
    async fn make(&self, _: VolumeId, _: MiB) -> Result<(), FileError> {
        Ok(())
    }
    async fn discard(&self, _: VolumeId) -> Result<(), FileError> {
        Ok(())
    }
    async fn held(&self) -> Result<Vec<VolumeId>, FileError> {
        unreachable!("the API does not ask a node which volumes it has")
    }
    async fn stat(&self, _: VolumeId, path: &str) -> Result<FileStat, FileError> {
        let files = self.files.lock().unwrap();
        let file = files
            .get(path)
            .ok_or_else(|| FileError::NotFound(path.to_owned()))?;
        Ok(stat(path, file))
    }
    async fn change(&self, _: VolumeId, path: &str, ownership: Ownership) -> Result<FileStat, FileError> {
        let mut files = self.files.lock().unwrap();
        let file = files
            .get_mut(path)
            .ok_or_else(|| FileError::NotFound(path.to_owned()))?;
        file.1 = ownership;
        Ok(stat(path, file))
    }
    async fn list(&self, _: VolumeId, path: &str, depth: u32) -> Result<Vec<FileStat>, FileError> {
        let files = self.files.lock().unwrap();
        let below = |found: &str| {
            found
                .strip_prefix(path)
                .is_some_and(|rest| rest.split('/').count() <= depth as usize)
        };
        Ok(files
            .iter()
            .filter(|(found, _)| below(found))
            .map(|(path, file)| stat(path, file))
            .collect())
    }
    async fn make_dir(
        &self,
        _: VolumeId,
        path: &str,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        if path == "/there" && !force {
            return Err(FileError::Exists(path.to_owned()));
        }
        if path == "/none/below" && !force {
            return Err(FileError::NotFound("/none".to_owned()));
        }
        let made = stat(path, &(Vec::new(), ownership));
        Ok(FileStat {
            kind: FileKind::Directory,
            ..made
        })
    }
    async fn remove(&self, _: VolumeId, path: &str) -> Result<(), FileError> {
        let removed = self.files.lock().unwrap().remove(path);
        removed
            .map(|_| ())
            .ok_or_else(|| FileError::NotFound(path.to_owned()))
    }
    async fn read(&self, _: VolumeId, path: &str) -> Result<(u64, ByteStream), FileError> {
        let files = self.files.lock().unwrap();
        let (bytes, _) = files
            .get(path)
            .ok_or_else(|| FileError::NotFound(path.to_owned()))?;
        let pieces: Vec<_> = bytes
            .chunks(2.max(bytes.len() / 1024))
            .map(|piece| Ok(bytes::Bytes::copy_from_slice(piece)))
            .collect();
        Ok((bytes.len() as u64, futures_util::stream::iter(pieces).boxed()))
    }
    async fn write(
        &self,
        _: VolumeId,
        path: &str,
        mut bytes: ByteStream,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        let mut whole = Vec::new();
        while let Some(piece) = bytes.next().await {
            whole.extend_from_slice(&piece.map_err(FileError::Source)?);
            if whole.starts_with(b"huge") {
                return Err(FileError::Full);
            }
        }
        let mut files = self.files.lock().unwrap();
        if files.contains_key(path) && !force {
            return Err(FileError::Exists(path.to_owned()));
        }
        files.insert(path.to_owned(), (whole, ownership));
        Ok(stat(path, &files[path]))
    }
}

struct Content<'a> {
    house: &'a House,
    path: String,
    token: String,
}

impl Content<'_> {
    async fn ask(&self, method: &str, what: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/{what}", self.path));
        let request = request.header("authorization", format!("Bearer {}", self.token));
        self.house.send(request, body.into()).await
    }
}

impl House {
    async fn content(&self) -> Content<'_> {
        let made = self.ask("POST", "/volumes", Some(json!({"name": "data"}))).await;
        Content {
            house: self,
            path: format!("/volumecontent/{}", made.body["volumeID"].as_str().unwrap()),
            token: made.body["token"].as_str().unwrap().to_owned(),
        }
    }
}

#[tokio::test]
async fn volumes_are_made_listed_and_removed_by_their_team() {
    let house = House::open(None).await;
    let made = house
        .ask("POST", "/volumes", Some(json!({"name": "My_data-1"})))
        .await;
    assert_eq!(made.status, 201);
    let id = made.body["volumeID"].as_str().unwrap().to_owned();
    assert_eq!(
        made.body,
        json!({"volumeID": id, "name": "My_data-1", "token": format!("token-{id}")})
    );
    let twice = house
        .ask("POST", "/volumes", Some(json!({"name": "My_data-1"})))
        .await;
    assert_eq!(
        (twice.status.as_u16(), twice.message()),
        (400, "Volume with name 'My_data-1' already exists")
    );
    for wrong in ["", "a b", "a/b", "ä", &"a".repeat(129)] {
        let answer = house.ask("POST", "/volumes", Some(json!({"name": wrong}))).await;
        assert_eq!(answer.status, 400, "{wrong}");
        assert!(answer.message().starts_with("Invalid volume name"));
    }
    assert_eq!(
        house.get("/volumes").await.body,
        json!([{"volumeID": id, "name": "My_data-1"}])
    );
    let path = format!("/volumes/{id}");
    assert_eq!(house.get(&path).await.body, made.body);
    assert_eq!(house.stranger("GET", "/volumes", None).await.count(), 0);
    for method in ["GET", "DELETE"] {
        let answer = house.stranger(method, &path, None).await;
        assert_eq!(
            (answer.status.as_u16(), answer.message()),
            (404, "Volume not found")
        );
        let answer = house.ask(method, "/volumes/x", None).await;
        assert_eq!(
            (answer.status.as_u16(), answer.message()),
            (400, "Invalid volume ID")
        );
        let nobody = Request::builder().method(method).uri(&path);
        assert_eq!(house.send(nobody, Body::empty()).await.status, 401);
    }
    assert_eq!(
        house
            .send(Request::post("/volumes"), Body::from("{}"))
            .await
            .status,
        401
    );
    assert_eq!(house.ask("DELETE", &path, None).await.status, 204);
    assert_eq!(house.ask("DELETE", &path, None).await.status, 404);
    let used = house.ask("POST", "/volumes", Some(json!({"name": "used"}))).await;
    let used = format!("/volumes/{}", used.body["volumeID"].as_str().unwrap());
    assert_eq!(house.ask("DELETE", &used, None).await.status, 409);
}

#[tokio::test]
async fn files_of_a_volume_are_written_read_changed_and_removed() {
    let house = House::open(None).await;
    let content = house.content().await;
    let written = content
        .ask(
            "PUT",
            "file?path=%2Fa+b.txt&uid=1000&gid=1001&mode=420&force=true",
            "hello",
        )
        .await;
    assert_eq!(written.status, 201, "{written:?}");
    let time = "1970-01-01T00:00:00.000000Z";
    let expected = json!({
        "name": "a b.txt", "type": "file", "path": "/a b.txt", "size": 5, "mode": 0o100_644, "uid": 1000, "gid": 1001,
        "atime": time, "mtime": time, "ctime": time,
    });
    assert_eq!(written.body, expected);
    assert_eq!(
        content
            .ask("PUT", "file?path=/a%20b.txt&force=false", "x")
            .await
            .status,
        409
    );
    let read = content.ask("GET", "file?path=/a%20b.txt", Body::empty()).await;
    assert_eq!((read.status.as_u16(), &read.bytes[..]), (200, &b"hello"[..]));
    assert_eq!(read.header("content-type"), Some("application/octet-stream"));
    assert_eq!(read.header("content-length"), Some("5"));
    assert_eq!(
        content
            .ask("GET", "path?path=/a%20b.txt", Body::empty())
            .await
            .body,
        expected
    );
    let changed = content
        .ask("PATCH", "path?path=/a%20b.txt", r#"{"uid":7,"mode":493}"#)
        .await;
    assert_eq!(
        (&changed.body["uid"], &changed.body["mode"]),
        (&json!(7), &json!(0o100_755))
    );
    let list = content.ask("GET", "dir?path=/", Body::empty()).await;
    assert_eq!((list.status.as_u16(), list.count()), (200, 1));
    let made = content
        .ask("POST", "dir?path=/there&force=true", Body::empty())
        .await;
    assert_eq!(
        (made.status.as_u16(), &made.body["type"]),
        (201, &json!("directory"))
    );
    assert_eq!(
        content.ask("POST", "dir?path=/there", Body::empty()).await.status,
        409
    );
    // Whether directories above it are made is told to whoever keeps the files.
    let missing = content.ask("POST", "dir?path=/none/below", Body::empty()).await;
    assert_eq!(
        (missing.status.as_u16(), missing.message()),
        (404, "path '/none' does not exist")
    );
    for made in ["/none/below&force=true", "/new", "//new/./", "/a%20b.txt/below"] {
        let made = content
            .ask("POST", &format!("dir?path={made}"), Body::empty())
            .await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    let removed = content.ask("DELETE", "path?path=/a%20b.txt", Body::empty()).await;
    assert_eq!((removed.status.as_u16(), removed.bytes.len()), (204, 0));
    let full = content.ask("PUT", "file?path=/b", "huge").await;
    assert_eq!(
        (full.status.as_u16(), &full.body["code"]),
        (507, &json!("no_space"))
    );
}

#[tokio::test]
async fn failures_of_a_volumes_content_have_a_word_as_their_code() {
    let house = House::open(None).await;
    let content = house.content().await;
    let long = format!("path?path=/{}", "a".repeat(4_096));
    for (method, what, body, status, code) in [
        ("GET", "path?path=/none", "", 404, "not_found"),
        ("GET", "file?path=/none", "", 404, "not_found"),
        ("DELETE", "path?path=/none", "", 404, "not_found"),
        ("GET", "path", "", 400, "invalid"),
        ("GET", "path?path=", "", 400, "invalid"),
        ("GET", "path?path=%00", "", 400, "invalid"),
        ("GET", "path?path=%ff", "", 400, "invalid"),
        ("GET", &long, "", 400, "invalid"),
        ("GET", "dir?path=/&depth=0", "", 400, "invalid"),
        ("GET", "dir?path=/&depth=257", "", 400, "invalid"),
        ("GET", "dir?path=/&depth=x", "", 400, "invalid"),
        ("PUT", "file?path=/a&mode=4096", "x", 400, "invalid"),
        ("PUT", "file?path=/a&uid=-1", "x", 400, "invalid"),
        ("PUT", "file?path=/a&uid=4294967295", "x", 400, "invalid"),
        ("PUT", "file?path=/a&force=maybe", "x", 400, "invalid"),
        ("PATCH", "path?path=/a", "", 400, "invalid"),
        ("PATCH", "path?path=/a", r#"{"mode":4096}"#, 400, "invalid"),
        ("PATCH", "path?path=/a", "[1]", 400, "invalid"),
        ("POST", "file?path=/a", "", 405, "method_not_allowed"),
        ("GET", "nothing?path=/a", "", 404, "not_found"),
    ] {
        let answer = content.ask(method, what, body).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["code"]),
            (status, &json!(code)),
            "{method} {what}"
        );
        assert!(!answer.message().is_empty());
    }
    let path = format!("{}/file?path=/a", content.path);
    let short = Request::put(&path)
        .header("authorization", format!("Bearer {}", content.token))
        .header("content-length", 5);
    assert_eq!(house.send(short, Body::from("abc")).await.status, 400);
    assert!(house.volumes.files.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_content_of_a_volume_is_open_to_its_token_alone() {
    let house = House::open(None).await;
    let content = house.content().await;
    let other = house
        .ask("POST", "/volumes", Some(json!({"name": "other"})))
        .await;
    let other = other.body["token"].as_str().unwrap().to_owned();
    let asked = [
        ("GET", "path?path=/"),
        ("PATCH", "path?path=/"),
        ("DELETE", "path?path=/"),
        ("GET", "dir?path=/"),
        ("POST", "dir?path=/"),
        ("GET", "file?path=/"),
        ("PUT", "file?path=/"),
    ];
    for (method, what) in asked {
        for (name, value) in [
            ("x-api-key", KEY.to_owned()),
            ("authorization", format!("Bearer {other}")),
            ("authorization", content.token.clone()),
            ("authorization", format!("Basic {}", content.token)),
            ("authorization", format!("Bearer {}", "a".repeat(5_000))),
        ] {
            let request = Request::builder()
                .method(method)
                .uri(format!("{}/{what}", content.path));
            let answer = house.send(request.header(name, &value), Body::from("{}")).await;
            assert_eq!(
                (answer.status.as_u16(), &answer.body["code"]),
                (401, &json!("unauthenticated")),
                "{method} {what}"
            );
        }
        let request = Request::builder()
            .method(method)
            .uri(format!("/volumecontent/x/{what}"));
        let request = request.header("authorization", format!("Bearer {}", content.token));
        assert_eq!(
            house.send(request, Body::from("{}")).await.status,
            401,
            "{method} {what}"
        );
    }
}

#[tokio::test]
async fn browsers_may_ask_for_the_content_of_a_volume() {
    let house = House::open(None).await;
    let content = house.content().await;
    for what in ["path", "dir", "file"] {
        let request = Request::options(format!("{}/{what}?path=/a", content.path))
            .header("origin", "https://app.example")
            .header("access-control-request-method", "PUT")
            .header("access-control-request-headers", "authorization,content-type");
        let allowed = house.send(request, Body::empty()).await;
        assert_eq!(
            (
                allowed.status.as_u16(),
                allowed.header("access-control-allow-origin")
            ),
            (204, Some("*"))
        );
        assert!(
            allowed
                .header("access-control-allow-headers")
                .unwrap()
                .contains("Authorization")
        );
        assert!(
            allowed
                .header("access-control-allow-methods")
                .unwrap()
                .contains("PUT")
        );
    }
    let refused = content.ask("GET", "path?path=/none", Body::empty()).await;
    assert_eq!(refused.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test]
async fn a_long_answer_is_not_cut_off_as_idle_and_one_that_nobody_reads_is() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let house = House::open(None).await;
    let content = house.content().await;
    // More than the kernel's buffers take.
    let size = 64 << 20;
    let file = (vec![7; size], Ownership::default());
    house
        .volumes
        .files
        .lock()
        .unwrap()
        .insert("/big".to_owned(), file);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    tokio::spawn(house.api.clone().serve(listener, stop.clone()));
    let request = format!(
        "GET {}/file?path=/big HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        content.path, content.token
    );
    let mut read = tokio::net::TcpStream::connect(address).await.unwrap();
    read.write_all(request.as_bytes()).await.unwrap();
    let mut unread = tokio::net::TcpStream::connect(address).await.unwrap();
    unread.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    tokio::time::pause();
    // The clock stands still but for these steps: together they are longer than a connection may be idle.
    let mut seen = 0;
    let mut piece = vec![0; 1 << 20];
    for _ in 0..8 {
        tokio::time::advance(Duration::from_secs(20)).await;
        for _ in 0..4 {
            let length = read.read(&mut piece).await.unwrap();
            assert!(length > 0, "cut off after {seen} bytes");
            seen += length;
        }
        tokio::time::resume();
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::time::pause();
    }
    tokio::time::resume();
    let mut rest = Vec::new();
    read.read_to_end(&mut rest).await.unwrap();
    assert!(seen + rest.len() > size);
    // Nobody has read this one for eight times twenty seconds.
    let mut rest = Vec::new();
    let _ = unread.read_to_end(&mut rest).await;
    assert!(rest.len() < size);
    stop.cancel();
}

#[tokio::test]
async fn a_client_that_is_still_sending_reads_why_its_file_was_refused() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let house = House::open(None).await;
    let content = house.content().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    tokio::spawn(house.api.clone().serve(listener, stop.clone()));
    // More than the kernel's buffers take.
    let size = 32 << 20;
    let head = format!(
        "PUT {}/file?path=/b HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-length: {size}\r\n\r\nhuge",
        content.path, content.token
    );
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // It is refused by now, and the client has not looked.
    tokio::time::sleep(Duration::from_millis(200)).await;
    stream.write_all(&vec![7; size - 4]).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 507") && answer.contains("no_space"),
        "{answer}"
    );
    stop.cancel();
}
