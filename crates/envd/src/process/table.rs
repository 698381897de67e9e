//! Which programs there are, and for a while which there were.
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::process::Signal;
use wire::init::StartCommand;

use crate::logs::Logs;
use crate::process::launch::{Launch, LaunchError};
use crate::process::running::{End, Event, Output, Running};
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
    table: Mutex<Table>,
    /// The calls borrow the table; the tasks that they start outlive the borrow.
    pub(super) this: Weak<Processes>,
}

/// The programs by numbers of our own: the kernel gives a number again while what its last holder left behind still
/// speaks.
#[derive(Default)]
struct Table {
    live: BTreeMap<u64, Arc<Running>>,
    /// Oldest end first.
    ended: VecDeque<Ended>,
    last: u64,
}

/// What is remembered of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    number: u64,
    pub(super) pid: u32,
    tag: Option<String>,
    pub(super) end: End,
}

/// What a client named.
pub(super) enum Found {
    Running(Arc<Running>),
    Ended(Ended),
}

impl Table {
    fn add(&mut self, running: Arc<Running>) -> u64 {
        self.last += 1;
        self.live.insert(self.last, running);
        self.last
    }

    /// It has ended: of it is kept what a client that comes late is told.
    fn retire(&mut self, number: u64) {
        let Some(running) = self.live.remove(&number) else {
            return;
        };
        if let Some(end) = running.end() {
            self.remember(Ended {
                number,
                pid: running.pid,
                tag: running.launch.tag.clone(),
                end,
            });
        }
    }

    fn remember(&mut self, ended: Ended) {
        if self.ended.len() == REMEMBERED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    fn forget(&mut self, number: u64) {
        self.ended.retain(|ended| ended.number != number);
    }

    /// The latest of this name: one that is there before one of which only others are left, and that before one that is
    /// only remembered.
    fn find(&self, selector: &Selector) -> Option<Found> {
        let is_it = |pid: u32, tag: Option<&String>| match selector {
            Selector::Pid(asked) => pid == *asked,
            Selector::Tag(asked) => tag == Some(asked),
        };
        let running = self
            .live
            .values()
            .filter(|process| is_it(process.pid, process.launch.tag.as_ref()))
            .max_by_key(|process| process.is_there());
        let ended = || {
            let mut ended = self.ended.iter().rev();
            ended.find(|ended| is_it(ended.pid, ended.tag.as_ref()))
        };
        match running {
            Some(running) => Some(Found::Running(Arc::clone(running))),
            None => ended().cloned().map(Found::Ended),
        }
    }
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

    /// Starts a program and remembers until a while after its end how that was.
    pub(super) fn start(self: &Arc<Self>, mut launch: Launch) -> Result<Arc<Running>, LaunchError> {
        let started = launch.start()?;
        // The program has it; nobody else asks for it again.
        launch.env = BTreeMap::new();
        let reaped = self.reaper.watch(started.pid);
        let running = Arc::new(Running::new(launch, started, reaped));
        self.log_start(&running);
        let number = self.table().add(Arc::clone(&running));
        let (processes, driven) = (Arc::clone(self), Arc::clone(&running));
        tokio::spawn(async move {
            // Boxed, so that only what is needed is kept while it is remembered.
            Box::pin(driven.drive()).await;
            processes.log_end(&driven);
            processes.table().retire(number);
            drop(driven);
            tokio::time::sleep(REMEMBERED_FOR).await;
            processes.table().forget(number);
        });
        Ok(running)
    }

    /// The program that a client names, ended or not.
    pub(super) fn find(&self, selector: &Selector) -> Option<Found> {
        self.table().find(selector)
    }

    /// The programs that live.
    pub(super) fn live(&self) -> Vec<Arc<Running>> {
        let mut live: Vec<_> = self
            .table()
            .live
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

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table
            .lock()
            .expect("nothing panics while it holds the table")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::launch::{Ends, Started};

    fn ended(number: u64, pid: u32) -> Ended {
        Ended {
            number,
            pid,
            tag: Some(format!("tag {number}")),
            end: End {
                exit_code: 0,
                exited: true,
                status: "exit status 0".into(),
                error: None,
            },
        }
    }

    fn number_of(found: Option<Found>) -> Option<u64> {
        match found {
            Some(Found::Ended(ended)) => Some(ended.number),
            _ => None,
        }
    }

    #[test]
    fn the_oldest_end_is_forgotten_first_and_the_latest_is_told() {
        let mut table = Table::default();
        for number in 1..=REMEMBERED_MAX as u64 + 2 {
            // All had the same number of the kernel's.
            table.remember(ended(number, 7));
        }
        assert_eq!(table.ended.len(), REMEMBERED_MAX);
        assert_eq!(table.ended[0].number, 3);
        let latest = REMEMBERED_MAX as u64 + 2;
        assert_eq!(number_of(table.find(&Selector::Pid(7))), Some(latest));
        assert_eq!(number_of(table.find(&Selector::Tag("tag 3".into()))), Some(3));
        table.forget(latest);
        assert_eq!(number_of(table.find(&Selector::Pid(7))), Some(latest - 1));
        assert_eq!(number_of(table.find(&Selector::Pid(8))), None);
    }

    fn processes() -> Arc<Processes> {
        Processes::new(Arc::default(), Arc::default(), Arc::default())
    }

    fn shell(command: &str) -> Launch {
        Launch {
            cmd: "/bin/sh".into(),
            args: vec!["-c".into(), command.into()],
            envs: BTreeMap::from([("LARGE".into(), "x".into())]),
            env: BTreeMap::new(),
            cwd: "/".into(),
            asked_cwd: None,
            user: User::of_uid(rustix::process::geteuid().as_raw()).unwrap(),
            tag: None,
            stdin: false,
            terminal: None,
        }
    }

    fn ends() -> Ends {
        let pipe = || tokio::net::unix::pipe::pipe().unwrap().1;
        Ends::Pipes {
            stdin: None,
            stdout: pipe(),
            stderr: pipe(),
        }
    }

    /// Reaps one child of ours by its number, and no other test's.
    async fn reap(processes: &Processes, pid: u32) {
        let child = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap());
        let (_, status) = tokio::task::spawn_blocking(move || {
            rustix::process::waitpid(child, rustix::process::WaitOptions::empty())
        })
        .await
        .unwrap()
        .unwrap()
        .unwrap();
        processes.reaper.tell(child.unwrap(), status);
    }

    #[tokio::test]
    async fn a_number_that_is_given_again_is_never_signalled_and_hides_nobody() {
        let processes = processes();
        // What it leaves behind holds its output, and reads until its input is closed.
        let left = Launch {
            stdin: true,
            ..shell("exec 3<&0; cat <&3 & exit 0")
        };
        let left = processes.start(left).unwrap();
        reap(&processes, left.pid).await;
        assert!(
            left.end().is_none() && !left.is_there(),
            "its output is still held"
        );
        // As if the kernel had given its number to this one.
        let mut other = std::process::Command::new("/bin/sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let recycled = Running::new(
            shell(""),
            Started {
                pid: left.pid,
                ends: ends(),
            },
            processes.reaper.watch(other.id()),
        );
        processes.table().add(Arc::new(recycled));
        let found = processes.find(&Selector::Pid(left.pid));
        assert!(matches!(found, Some(Found::Running(found)) if found.is_there()));
        assert_eq!(processes.live().len(), 2, "neither hides the other");
        // Its own process is gone: what is left of it is not waited for, and nobody is signalled.
        left.signal(Signal::KILL);
        left.wait_for_end().await;
        assert_eq!(left.end().unwrap().status, "exit status 0");
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
