//! envd, started for one test, and a client that knows just enough HTTP and Connect.
use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// No answer takes longer; a test that waits for ever tells nothing.
const WITHIN: Duration = Duration::from_secs(30);

/// A daemon of a test's own, with a directory of its own.
pub(crate) struct Envd {
    daemon: Child,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
    pub(crate) fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Envd {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        // A port that was free a moment ago; whoever took it meanwhile makes the start fail, not the test lie.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a port")
            .port();
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_atoll-envd"))
            .arg("--socket")
            .arg(dir.path().join("run/envd.sock"))
            .args([
                "--accept-local-peers",
                "--ready-fd",
                "1",
                "--port",
                &port.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("envd starts");
        let mut ready = [0];
        daemon
            .stdout
            .take()
            .expect("a pipe")
            .read_exact(&mut ready)
            .expect("envd listens");
        Self { daemon, dir, port }
    }

    /// Signals the daemon itself.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.daemon.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a process"), signal).expect("it is there");
    }

    /// Waits until the daemon has ended by itself.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.daemon.wait().expect("it is ours")
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.at("run/envd.sock")).expect("envd listens");
        stream.set_read_timeout(Some(WITHIN)).expect("a timeout");
        stream
    }

    /// Says what `/init` says.
    pub(crate) fn init(&self, settings: &Value) {
        let answer = self.ask("POST", "/init", &[], settings.to_string().as_bytes());
        assert_eq!(answer.status, 204, "{answer:?}");
    }

    pub(crate) fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        send(&mut stream, method, target, headers, body);
        read(stream, method)
    }

    /// Asks at the port that everything inside can reach.
    pub(crate) fn ask_inside(&self, method: &str, target: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("envd listens");
        send(&mut stream, method, target, &[], b"");
        read(stream, method)
    }

    /// A call that is answered once.
    pub(crate) fn call(&self, method: &str, request: &Value) -> Result<Value, (String, String)> {
        let headers = [
            ("Content-Type", "application/json"),
            ("Connect-Protocol-Version", "1"),
        ];
        let answer = self.ask(
            "POST",
            &format!("/{method}"),
            &headers,
            request.to_string().as_bytes(),
        );
        let body = answer.json();
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        if answer.status == 200 {
            Ok(body)
        } else {
            Err((text("code"), text("message")))
        }
    }

    /// A call that is answered by a stream.
    pub(crate) fn stream(&self, method: &str, request: &Value, headers: &[(&str, &str)]) -> Messages {
        self.stream_of("application/connect+json", method, &frame(request), headers)
    }

    /// The same, in any encoding.
    pub(crate) fn stream_of(
        &self,
        media_type: &str,
        method: &str,
        frames: &[u8],
        headers: &[(&str, &str)],
    ) -> Messages {
        let mut all = vec![("Content-Type", media_type), ("Connect-Protocol-Version", "1")];
        all.extend(headers);
        let mut stream = self.connect();
        send(&mut stream, "POST", &format!("/{method}"), &all, frames);
        let mut reader = BufReader::new(stream);
        let (status, _) = head(&mut reader);
        assert_eq!(status, 200);
        Messages {
            chunks: Chunks {
                reader,
                left: 0,
                over: false,
            },
        }
    }

    /// Runs a shell command; what it said on its outputs, and how it ended.
    pub(crate) fn run(&self, command: &str) -> (String, String, Value) {
        self.stream("process.Process/Start", &shell(command), &[])
            .until_end()
    }
}

impl Drop for Envd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A shell command as a client starts it.
pub(crate) fn shell(command: &str) -> Value {
    json!({ "process": { "cmd": "/bin/sh", "args": ["-c", command] }, "stdin": false })
}

/// One message as it travels.
pub(crate) fn frame(message: &Value) -> Vec<u8> {
    frame_bytes(message.to_string().as_bytes())
}

pub(crate) fn frame_bytes(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len())
        .expect("a small message")
        .to_be_bytes();
    [&[0][..], &length, message].concat()
}

/// The messages of a stream.
pub(crate) struct Messages {
    chunks: Chunks,
}

impl Messages {
    /// The next message, or how the stream ended.
    pub(crate) fn next(&mut self) -> Result<Value, Value> {
        let json = |text: Vec<u8>| serde_json::from_slice(&text).expect("JSON");
        self.next_bytes().map(json).map_err(json)
    }

    /// The same, as it travels.
    pub(crate) fn next_bytes(&mut self) -> Result<Vec<u8>, Vec<u8>> {
        let mut head = [0; 5];
        self.chunks.read_exact(&mut head).expect("a message");
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut message = vec![0; length as usize];
        self.chunks.read_exact(&mut message).expect("a whole message");
        if head[0] & 2 == 0 {
            Ok(message)
        } else {
            Err(message)
        }
    }

    /// The number of the process, which comes first.
    pub(crate) fn pid(&mut self) -> u64 {
        self.next().expect("a start")["event"]["start"]["pid"]
            .as_u64()
            .expect("a number")
    }

    /// Everything that is said on a process's outputs, and how it ended.
    pub(crate) fn until_end(&mut self) -> (String, String, Value) {
        use base64::Engine as _;
        let (mut stdout, mut stderr, mut end) = (Vec::new(), Vec::new(), Value::Null);
        while let Ok(message) = self.next() {
            let event = &message["event"];
            for (name, said) in [("stdout", &mut stdout), ("stderr", &mut stderr)] {
                if let Some(data) = event["data"][name].as_str() {
                    assert_eq!(end, Value::Null, "all data comes before the end");
                    said.extend(
                        base64::engine::general_purpose::STANDARD
                            .decode(data)
                            .expect("base64"),
                    );
                }
            }
            if event["end"].is_object() {
                end = event["end"].clone();
            }
        }
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (text(stdout), text(stderr), end)
    }
}

pub(crate) fn send(
    stream: &mut impl Write,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) {
    let mut head = format!(
        "{method} {target} HTTP/1.1\r\nHost: envd\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream
        .write_all(format!("{head}\r\n").as_bytes())
        .expect("envd takes a head");
    stream.write_all(body).expect("envd takes a body");
}

fn head(reader: &mut impl std::io::BufRead) -> (u16, HashMap<String, String>) {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a status");
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse().ok())
        .expect("a status");
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return (status, headers);
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
}

pub(crate) fn read(stream: impl Read, method: &str) -> Answer {
    let mut reader = BufReader::new(stream);
    let (status, headers) = head(&mut reader);
    let mut body = Vec::new();
    if let Some(length) = headers
        .get("content-length")
        .filter(|_| method != "HEAD" && status != 304)
    {
        reader
            .take(length.parse().expect("a length"))
            .read_to_end(&mut body)
            .expect("a body");
    } else if headers.contains_key("transfer-encoding") {
        Chunks {
            reader,
            left: 0,
            over: false,
        }
        .read_to_end(&mut body)
        .expect("a body");
    }
    Answer {
        status,
        headers,
        body,
    }
}

/// A body in chunks (RFC 9112, 7.1).
struct Chunks<R = BufReader<UnixStream>> {
    reader: R,
    left: usize,
    over: bool,
}

impl<R: std::io::BufRead> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 && !self.over {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            self.left = usize::from_str_radix(line.trim_end(), 16).map_err(std::io::Error::other)?;
            self.over = self.left == 0;
        }
        if self.over {
            return Ok(0);
        }
        let wanted = buffer.len().min(self.left);
        let read = self.reader.read(&mut buffer[..wanted])?;
        self.left -= read;
        if self.left == 0 {
            self.reader.read_line(&mut String::new())?;
        }
        Ok(read)
    }
}
