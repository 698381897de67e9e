//! A Firecracker that is none: this test program, started again as a machine's user in the machine's jail. It speaks the API,
//! keeps what its guest did in what it writes down, and does what the orders say. It reads them anew for each request, from its
//! standard input, and writes every request to its standard error.
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri};
use guest::line::{Answer, Header, Hello, Nothing, Order, Reason, Refusal, Usage, mux, read_line};
use linux::spawn::{Identity, Manner};
use ports::step::{At, Step};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::jail::Jail;
use crate::process::{Launch, Output};

/// What one is to do that is not as usual.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Orders {
    /// It refuses this request.
    pub(super) refuse: Option<String>,
    /// It dies at this request.
    pub(super) die: Option<String>,
    /// It does this request, and dies without an answer.
    pub(super) die_after: Option<String>,
    /// It does not answer this request.
    pub(super) hang: Option<String>,
    /// Its guest does not say that it is up.
    pub(super) silent: bool,
    /// Its guest does not become itself.
    pub(super) stubborn: bool,
    /// The jailer fails.
    pub(super) no_jail: bool,
}

/// Starts them.
pub(super) struct Fakes {
    dir: PathBuf,
}

impl Fakes {
    pub(super) fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let fakes = Self { dir: dir.to_owned() };
        fakes.order(&Orders::default());
        fakes
    }

    fn orders(&self) -> PathBuf {
        self.dir.join("orders")
    }

    pub(super) fn order(&self, orders: &Orders) {
        // In place: whoever runs has it open.
        fs::write(self.orders(), serde_json::to_vec(orders).unwrap()).unwrap();
    }

    /// Every request that a machine's was sent, with what did not go as it should.
    pub(super) fn calls(&self, execution: model::ExecutionId) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join(execution.to_string())).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[async_trait]
impl Launch for Fakes {
    async fn launch(&self, jail: &Jail, arguments: &[OsString], output: Output) -> Result<u32, Step> {
        let step = || "starting a Firecracker that is none";
        let orders: Orders = serde_json::from_slice(&fs::read(self.orders()).at(step())?).at(step())?;
        let (stdout, _) = output.both().at(step())?;
        let id = arguments.get(1).cloned().unwrap_or_default();
        if orders.no_jail {
            return Err(io::Error::other("exit status: 1")).at("running a jailer that is none");
        }
        let calls = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(&id))
            .at(step())?;
        // As the jailer leaves a jail.
        let root = jail.root();
        for dir in [root.join("run"), root.clone()] {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).at(step())?;
            std::os::unix::fs::chown(&dir, Some(jail.uid), Some(jail.uid)).at(step())?;
        }
        // By a descriptor: nobody else finds the way to it.
        let program = fs::File::open(std::env::current_exe().at(step())?).at(step())?;
        rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::empty()).at(step())?;
        let mut command = Command::new(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&program)
        ));
        command
            .args([
                "runtime::tests::fake::is_a_firecracker",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            // Where whoever looks for a Firecracker looks for its id.
            .args(["--skip", "--id"])
            .arg(&id)
            .env_clear()
            .env("FAKE_FIRECRACKER", &id)
            .current_dir(root)
            .stdin(fs::File::open(self.orders()).at(step())?)
            .stdout(stdout)
            .stderr(Stdio::from(calls));
        let identity = Identity {
            uid: jail.uid,
            gid: jail.uid,
            groups: Vec::new(),
        };
        let manner = Manner {
            terminal: false,
            oom_score_adj: 0,
        };
        let child = linux::spawn::spawn(command, &identity, manner).at(step())?;
        Ok(child.id())
    }
}

/// What there is of its guest: what is in its memory, or on its disk.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Config {
    memory_mib: u64,
    asked: BTreeMap<String, Value>,
}

struct Fake {
    id: String,
    calls: Mutex<fs::File>,
    orders: fs::File,
    machine: Mutex<Machine>,
}

struct Machine {
    state: &'static str,
    config: Config,
    /// How often its guest has done something.
    counter: u64,
    disk: Option<fs::File>,
    /// Whose name its guest has.
    name: String,
}

const PAGE: u64 = 4096;

#[test]
#[ignore = "it is no test, but what tests start as a Firecracker"]
fn is_a_firecracker() {
    let Some(id) = std::env::var_os("FAKE_FIRECRACKER") else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(serve(id.into_string().unwrap()));
}

async fn serve(id: String) {
    let fake = Arc::new(Fake {
        id,
        calls: Mutex::new(io::stderr().as_fd().try_clone_to_owned().unwrap().into()),
        orders: io::stdin().as_fd().try_clone_to_owned().unwrap().into(),
        machine: Mutex::new(Machine {
            state: "Not started",
            config: Config::default(),
            counter: 0,
            disk: None,
            name: String::new(),
        }),
    });
    let listener = UnixListener::bind("run/api.sock").unwrap();
    let app = axum::Router::new().fallback(move |method: Method, uri: Uri, body: Bytes| {
        let fake = Arc::clone(&fake);
        async move { fake.ask(&method, uri.path(), &body).await }
    });
    axum::serve(listener, app).await.unwrap();
}

fn die() {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

impl Fake {
    fn orders(&self) -> Orders {
        let mut text = vec![0; 4096];
        let read = self.orders.read_at(&mut text, 0).unwrap();
        serde_json::from_slice(&text[..read]).unwrap_or_default()
    }

    fn note(&self, what: &str) {
        let mut calls = self.calls.lock().unwrap();
        calls.write_all(format!("{what}\n").as_bytes()).unwrap();
    }

    async fn ask(self: &Arc<Self>, method: &Method, path: &str, body: &[u8]) -> (StatusCode, String) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let detail = body["state"].as_str().map(|state| format!(" {state}"));
        let asked = format!("{method} {path}{}", detail.unwrap_or_default());
        self.note(&asked);
        let is = |order: &Option<String>| order.as_ref() == Some(&asked);
        let orders = self.orders();
        if is(&orders.die) {
            die();
        }
        if is(&orders.hang) {
            std::future::pending::<()>().await;
        }
        let done = if is(&orders.refuse) {
            Err("it was ordered to refuse this".to_owned())
        } else {
            self.carry_out(&asked, body)
        };
        if is(&orders.die_after) {
            die();
        }
        match done {
            Ok(Some(told)) => (StatusCode::OK, told.to_string()),
            Ok(None) => (StatusCode::NO_CONTENT, String::new()),
            Err(fault) => {
                self.note(&format!("refused {asked}: {fault}"));
                (
                    StatusCode::BAD_REQUEST,
                    json!({ "fault_message": fault }).to_string(),
                )
            }
        }
    }

    fn carry_out(self: &Arc<Self>, asked: &str, body: Value) -> Result<Option<Value>, String> {
        let mut machine = self.machine.lock().unwrap();
        let is_before = machine.state == "Not started";
        match asked {
            "GET /" => {
                let told = json!({
                    "app_name": "Firecracker", "id": self.id, "state": machine.state, "vmm_version": "1.16.2",
                });
                return Ok(Some(told));
            }
            "PUT /actions" if is_before => {
                machine.disk = Some(open_disk(&machine.config)?);
                machine.state = "Running";
                self.look_around();
                let (fake, is_silent) = (Arc::clone(self), self.orders().silent);
                tokio::spawn(async move {
                    if !is_silent {
                        let told = json!({ "ok": true, "agent": "fake", "kernel": "0", "uptimeMs": 1 });
                        let mut call = UnixStream::connect("run/v.sock_9000").await.unwrap();
                        call.write_all(format!("{told}\n").as_bytes()).await.unwrap();
                    }
                    drop(fake);
                });
            }
            "PATCH /vm Paused" if !is_before => machine.state = "Paused",
            "PATCH /vm Resumed" if !is_before => {
                self.look_around();
                machine.state = "Running";
            }
            "PUT /snapshot/create" if machine.state == "Paused" => {
                write_down(&machine, &body).map_err(|error| error.to_string())?;
            }
            "PUT /snapshot/load" if is_before => {
                load(&mut machine, &body).map_err(|error| error.to_string())?;
                machine.disk = Some(open_disk(&machine.config)?);
                self.listen()?;
            }
            "PATCH /drives/root" if !is_before => machine.disk = Some(open_disk(&machine.config)?),
            _ if is_before && asked.starts_with("PUT /") => {
                if asked == "PUT /machine-config" {
                    machine.config.memory_mib = body["mem_size_mib"].as_u64().ok_or("no memory")?;
                }
                if asked == "PUT /vsock" {
                    self.listen()?;
                }
                for name in ["kernel_image_path", "initrd_path"] {
                    if let Some(path) = body[name].as_str() {
                        fs::read(path.trim_start_matches('/')).map_err(|error| error.to_string())?;
                    }
                }
                machine.config.asked.insert(asked.to_owned(), body);
            }
            _ => return Err(format!("not now: it is {}", machine.state)),
        }
        Ok(None)
    }

    /// From when a guest runs on, what it could take over has nothing left to reach for.
    fn look_around(&self) {
        for name in ["own", "run/own"] {
            if fs::File::create(name).is_ok() {
                self.note(&format!("VIOLATION: {name} could be made"));
            }
        }
        for name in ["kernel", "initrd", "memory", "state"] {
            if fs::File::options().write(true).open(name).is_ok() {
                self.note(&format!("VIOLATION: {name} could be written to"));
            }
        }
        if fs::rename("run", "elsewhere").is_ok() || fs::remove_file("run/v.sock").is_ok() {
            self.note("VIOLATION: names could be changed");
        }
    }

    fn listen(self: &Arc<Self>) -> Result<(), String> {
        let listener = UnixListener::bind("run/v.sock").map_err(|error| error.to_string())?;
        let fake = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let fake = Arc::clone(&fake);
                tokio::spawn(async move {
                    let _ = fake.converse(BufReader::new(stream)).await;
                });
            }
        });
        Ok(())
    }

    /// One conversation with the agent.
    async fn converse(self: &Arc<Self>, mut io: BufReader<UnixStream>) -> io::Result<()> {
        let connect = read_line(&mut io, 64).await?;
        if connect != b"CONNECT 1024" || self.machine.lock().unwrap().state != "Running" {
            // Nobody listens, or nobody moves.
            return Ok(());
        }
        io.write_all(b"OK 1073741824\n").await?;
        let served = mux::serve(io, |stream| {
            let fake = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = fake.answer(BufReader::new(stream)).await {
                    fake.note(&format!("a stream broke: {error}"));
                }
            });
        });
        served.await.map_err(io::Error::other)
    }

    /// One stream of it.
    async fn answer(&self, mut stream: BufReader<mux::MuxStream>) -> io::Result<()> {
        let header = read_line(&mut stream, 4096).await?;
        let done = |mut told: Value| {
            told["ok"] = json!(true);
            told
        };
        let answer = match Header::parse(&header).map_err(io::Error::other)? {
            Header::Agent(order) => match self.obey(order) {
                Ok(told) => done(told),
                Err(refusal) => serde_json::to_value(Answer::<Nothing>::Refused(refusal))?,
            },
            Header::Port { port: 80 } | Header::Envd => done(json!({})),
            Header::Port { port } => serde_json::to_value(Answer::<Nothing>::Refused(Refusal {
                error: format!("nothing listens on {port}"),
                reason: Reason::Closed,
            }))?,
            Header::Volume { .. } => serde_json::to_value(Answer::<Nothing>::Refused(Refusal {
                error: "there is no such volume".to_owned(),
                reason: Reason::Closed,
            }))?,
        };
        stream.write_all(format!("{answer}\n").as_bytes()).await?;
        stream.flush().await?;
        tokio::io::copy_buf(&mut stream, &mut tokio::io::sink()).await?;
        Ok(())
    }

    fn obey(&self, order: Order) -> Result<Value, Refusal> {
        let orders = self.orders();
        let mut machine = self.machine.lock().unwrap();
        let told = match order {
            Order::Hello => serde_json::to_value(Hello {
                agent: format!("{} on disk {}", machine.name, on_disk(&machine)),
                kernel: machine.counter.to_string(),
                uptime_ms: 1,
            }),
            Order::Volumes { .. } | Order::Attach { .. } => serde_json::to_value(Nothing {}),
            Order::Resume(_) if orders.stubborn => {
                return Err(Refusal {
                    error: "no".to_owned(),
                    reason: Reason::Failed,
                });
            }
            Order::Resume(resume) => {
                self.note(&format!("resume {}", resume.hostname.is_some()));
                if let Some(name) = resume.hostname {
                    machine.name = name;
                }
                serde_json::to_value(Nothing {})
            }
            Order::Usage => serde_json::to_value(Usage {
                tasks: machine.counter,
                ..Usage::default()
            }),
            Order::Sync => {
                // A guest that was asked has done something: it is in its memory, and on its disk.
                machine.counter += 1;
                let disk = machine.disk.as_ref().unwrap();
                disk.write_all_at(&machine.counter.to_le_bytes(), 0).unwrap();
                serde_json::to_value(Nothing {})
            }
            Order::Shutdown { .. } => serde_json::to_value(Nothing {}),
        };
        Ok(told.unwrap())
    }
}

fn on_disk(machine: &Machine) -> u64 {
    let mut counter = [0; 8];
    machine
        .disk
        .as_ref()
        .unwrap()
        .read_exact_at(&mut counter, 0)
        .unwrap();
    u64::from_le_bytes(counter)
}

fn open_disk(config: &Config) -> Result<fs::File, String> {
    let drive = config.asked.get("PUT /drives/root").ok_or("no drive")?;
    let path = drive["path_on_host"].as_str().ok_or("no path")?;
    let disk = fs::File::options()
        .read(true)
        .write(true)
        .open(path.trim_start_matches('/'));
    disk.map_err(|error| format!("{path}: {error}"))
}

/// As Firecracker does: into files that are there, the memory as long as the machine's.
fn write_down(machine: &Machine, body: &Value) -> io::Result<()> {
    let path = |name: &str| body[name].as_str().unwrap().trim_start_matches('/').to_owned();
    let mut state = fs::File::create(path("snapshot_path"))?;
    serde_json::to_writer(&mut state, &machine.config)?;
    let memory = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path("mem_file_path"))?;
    memory.set_len(machine.config.memory_mib << 20)?;
    if body["snapshot_type"] == "Full" {
        memory.write_all_at(b"boots once", 3 * PAGE)?;
    }
    memory.write_all_at(&machine.counter.to_le_bytes(), 9 * PAGE)?;
    memory.sync_all()
}

fn load(machine: &mut Machine, body: &Value) -> io::Result<()> {
    assert_eq!(
        (&body["resume_vm"], &body["clock_realtime"]),
        (&json!(false), &json!(true))
    );
    let path = |path: &Value| path.as_str().unwrap().trim_start_matches('/').to_owned();
    machine.config = serde_json::from_slice(&fs::read(path(&body["snapshot_path"]))?)?;
    let memory = fs::File::open(path(&body["mem_backend"]["backend_path"]))?;
    let mut booted = [0; 10];
    memory.read_exact_at(&mut booted, 3 * PAGE)?;
    if &booted != b"boots once" {
        return Err(io::Error::other("this is not all of its memory"));
    }
    let mut counter = [0; 8];
    memory.read_exact_at(&mut counter, 9 * PAGE)?;
    machine.counter = u64::from_le_bytes(counter);
    machine.state = "Paused";
    Ok(())
}

/// Waits for what others bring about.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what} does not come about"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
