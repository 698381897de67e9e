//! Which programs there are, and for a while which there were.
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::process::Signal;
use wire::init::StartCommand;

use crate::logs::Logs;
use crate::process::launch::{Launch, LaunchError};
use crate::process::running::{Event, Output, Running};
use crate::reaper::Reaper;
use crate::settings::Settings;
use crate::users::User;

/// A client that comes late still learns how its command ended (contract 5.3).
const REMEMBERED_FOR: Duration = Duration::from_secs(30);
/// Programs that are remembered at once; a fork bomb of calls forgets the oldest first.
const REMEMBERED_MAX: usize = 4096;

/// All programs that clients started.
pub(crate) struct Processes {
    pub(super) settings: Arc<Mutex<Settings>>,
    logs: Arc<Logs>,
    reaper: Arc<Reaper>,
    table: Mutex<HashMap<u32, Arc<Running>>>,
    /// The calls borrow the table; the tasks that they start outlive the borrow.
    pub(super) this: Weak<Processes>,
}

/// How a client names a program.
#[derive(Debug, Clone)]
pub(super) enum Selector {
    Pid(u32),
    Tag(String),
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Selector::Pid(pid) => write!(f, "pid {pid}"),
            Selector::Tag(tag) => write!(f, "tag {tag}"),
        }
    }
}

impl Processes {
    pub(crate) fn new(settings: Arc<Mutex<Settings>>, logs: Arc<Logs>, reaper: Arc<Reaper>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            settings,
            logs,
            reaper,
            table: Mutex::default(),
            this: this.clone(),
        })
    }

    /// Starts a program and remembers it until a while after its end.
    pub(super) fn start(self: &Arc<Self>, mut launch: Launch) -> Result<Arc<Running>, LaunchError> {
        let started = launch.start()?;
        // The program has it; nobody else asks for it again.
        launch.env = BTreeMap::new();
        let ended = self.reaper.watch(started.pid);
        let running = Arc::new(Running::new(launch, started));
        self.log_start(&running);
        {
            let mut table = self.table();
            table.insert(running.pid, Arc::clone(&running));
            if table.len() > REMEMBERED_MAX {
                let oldest = table.values().filter(|p| p.end().is_some()).map(|p| p.pid).next();
                oldest.and_then(|pid| table.remove(&pid));
            }
        }
        let (processes, driven) = (Arc::clone(self), Arc::clone(&running));
        tokio::spawn(async move {
            // Boxed, so that only what is needed is kept while it is remembered.
            Box::pin(driven.drive(ended)).await;
            processes.log_end(&driven);
            tokio::time::sleep(REMEMBERED_FOR).await;
            let mut table = processes.table();
            // The number may have been given to another program meanwhile.
            if table
                .get(&driven.pid)
                .is_some_and(|found| Arc::ptr_eq(found, &driven))
            {
                table.remove(&driven.pid);
            }
        });
        Ok(running)
    }

    /// The program that a client names, ended or not.
    pub(super) fn find(&self, selector: &Selector) -> Option<Arc<Running>> {
        let table = self.table();
        match selector {
            Selector::Pid(pid) => table.get(pid).cloned(),
            Selector::Tag(tag) => {
                let mut tagged = table
                    .values()
                    .filter(|process| process.launch.tag.as_ref() == Some(tag));
                // A live one before one that is only remembered.
                tagged
                    .clone()
                    .find(|process| process.end().is_none())
                    .or_else(|| tagged.next())
                    .cloned()
            }
        }
    }

    /// The programs that live.
    pub(super) fn live(&self) -> Vec<Arc<Running>> {
        let mut live: Vec<_> = self
            .table()
            .values()
            .filter(|process| process.end().is_none())
            .cloned()
            .collect();
        live.sort_by_key(|process| process.pid);
        live
    }

    /// Waits until no program lives.
    pub(crate) async fn all_ended(&self) {
        for process in self.live() {
            process.wait_for_end().await;
        }
    }

    /// Signals every program that lives.
    pub(crate) fn signal_all(&self, signal: Signal) {
        for process in self.live() {
            process.signal(signal);
        }
    }

    /// Runs what the template wants to run from the boot on; a line of its output is a line of the log.
    pub(crate) fn start_template_command(self: &Arc<Self>, start: StartCommand) {
        let env = {
            let settings = self
                .settings
                .lock()
                .expect("nothing panics while it holds the settings");
            User::find(&start.user).map(|user| (settings.env_of(&user, BTreeMap::new()), user))
        };
        let Some((env, user)) = env else {
            return self.logs.say(
                "error",
                "start",
                &format!("the start command's user '{}' does not exist", start.user),
                BTreeMap::new(),
            );
        };
        let cwd = start.cwd.unwrap_or_else(|| user.home.clone());
        let args = vec!["-l".to_owned(), "-c".to_owned(), start.command];
        let launch = Launch {
            cmd: "/bin/bash".into(),
            args,
            envs: BTreeMap::new(),
            env,
            cwd,
            asked_cwd: None,
            user,
            tag: Some("start".into()),
            stdin: false,
            terminal: None,
        };
        match self.start(launch) {
            Ok(running) => {
                let (processes, mut events) = (Arc::clone(self), running.subscribe());
                tokio::spawn(async move {
                    while let Some(Event::Data(output)) = events.recv().await {
                        let (level, bytes) = match &output {
                            Output::Stderr(bytes) => ("warn", bytes),
                            Output::Stdout(bytes) | Output::Terminal(bytes) => ("info", bytes),
                        };
                        for line in String::from_utf8_lossy(bytes).lines() {
                            processes.logs.say(level, "start", line, BTreeMap::new());
                        }
                    }
                });
            }
            Err(error) => self.logs.say(
                "error",
                "start",
                &format!("the start command did not start: {error}"),
                BTreeMap::new(),
            ),
        }
    }

    fn log_start(&self, process: &Running) {
        let command = std::iter::once(&process.launch.cmd)
            .chain(&process.launch.args)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(" ");
        let fields = BTreeMap::from([
            ("pid".to_owned(), process.pid.to_string()),
            ("user".to_owned(), process.launch.user.name.clone()),
        ]);
        self.logs
            .say("info", "process", &format!("started: {command}"), fields);
    }

    fn log_end(&self, process: &Running) {
        let status = process.end().map(|end| end.status).unwrap_or_default();
        self.logs.say(
            "info",
            "process",
            &format!("ended: {status}"),
            BTreeMap::from([("pid".to_owned(), process.pid.to_string())]),
        );
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Arc<Running>>> {
        self.table
            .lock()
            .expect("nothing panics while it holds the table")
    }
}
