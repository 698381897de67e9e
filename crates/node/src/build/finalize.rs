//! The last part of a build: the start command, the word that it has come up, and what sandboxes start from.
//!
//! ```text
//!   start command and a runtime that can    ──▶ disk and memory of the lab in which it runs
//!   start command                           ──▶ disk of the lab, quiet; it is run at each boot
//!   none, and a kernel that has to boot     ──▶ disk and memory of a lab that has come up
//!   none                                    ──▶ what the last step left, shared by all sandboxes
//! ```
use std::time::Duration;

use model::recipe::Context;
use model::{BuildStep, Memory, StartCommand};
use ports::builds::BuildError;
use ports::{Level, Machine, RuntimeError};
use tokio::time::Instant;

use super::executor::Work;
use super::lab::Lab;
use super::leash::{failure, refused};
use super::program::{self, Event, Program, ProgramError};
use super::step::{gone, hear};
use super::talk::{Printer, Talk, cut};
use crate::envd;

const STEP: BuildStep = BuildStep::Finalize;
/// Between two tries of the ready command (contract 4.2).
const READY_EVERY: Duration = Duration::from_secs(2);
/// How long it is tried (contract 4.2).
const READY_WITHIN: Duration = Duration::from_secs(600);
/// What a start command has to come up that nobody says the end of (contract 4.2).
const READY_BY_DEFAULT: Duration = Duration::from_secs(20);
/// A command is shown up to here.
const COMMAND_BYTES_MAX: usize = 1 << 10;

impl Work<'_> {
    /// Makes the result out of what the last step has left. Returns how much of the start command's memory is in it.
    pub(super) async fn finalize(&mut self, start: Option<&StartCommand>) -> Result<Memory, BuildError> {
        // What a step has left running is not in the result of a build that took the step from the cache.
        self.close_lab().await;
        let ready = self.order.recipe.ready.as_deref();
        match start {
            None => {
                if let Some(ready) = ready {
                    self.open_lab(STEP).await?;
                    self.await_ready(ready).await?;
                    self.close_lab().await;
                }
                let can = self.runtime().capabilities();
                if can.own_kernel && can.durable_memory {
                    // A boot takes many times as long as going on from memory.
                    self.open_lab(STEP).await?;
                    return self.keep_running().await;
                }
                self.seal().await.map(|()| Memory::None)
            }
            Some(start) => {
                self.open_lab(STEP).await?;
                self.come_up(start, ready).await?;
                failpoint::reach("node/build-ready");
                self.keep_running().await
            }
        }
    }

    /// Has the start command run until the ready command says that it has come up.
    async fn come_up(&mut self, start: &StartCommand, ready: Option<&str>) -> Result<(), BuildError> {
        let said = format!(
            "Running start command: {}",
            cut(&start.command, COMMAND_BYTES_MAX)
        );
        self.talk.say(STEP, Level::Info, said).await;
        let context = Context {
            user: start.user.clone(),
            workdir: start.cwd.clone(),
            env: self.context.env.clone(),
        };
        let (leash, talk) = (self.leash, self.talk);
        let machine = self.lab().machine();
        let outcome = leash
            .hold(STEP, async {
                Ok(up(machine, talk, start, ready, &context).await)
            })
            .await?;
        self.told(outcome).await
    }

    async fn await_ready(&mut self, ready: &str) -> Result<(), BuildError> {
        let (leash, talk, context) = (self.leash, self.talk, self.context.clone());
        let machine = self.lab().machine();
        let outcome = leash
            .hold(STEP, async {
                Ok(until_ready(machine, talk, ready, &context).await)
            })
            .await?;
        self.told(outcome).await
    }

    async fn told(&mut self, outcome: Result<(), String>) -> Result<(), BuildError> {
        let Err(what) = outcome else { return Ok(()) };
        let trouble = self.lab().trouble().await;
        Err(failure(
            STEP,
            trouble.map_or_else(|| what.clone(), |trouble| format!("{what} ({trouble})")),
        ))
    }

    /// Copies the lab in which the start command runs: with it, where that can be.
    async fn keep_running(&mut self) -> Result<Memory, BuildError> {
        self.leash.check(STEP)?;
        let result = self.order.build;
        if self.runtime().capabilities().durable_memory {
            envd::quiesce(self.lab().machine()).await;
            match self.lab().machine().checkpoint(result, true).await {
                Ok(memory) => {
                    failpoint::reach("node/build-result");
                    return Ok(memory);
                }
                Err(RuntimeError::CannotCheckpoint { why }) => {
                    let said = format!("each sandbox will boot, and run its start command: {why}");
                    self.talk.say(STEP, Level::Warn, said).await;
                }
                Err(error) => {
                    return Err(refused(STEP, "copying the build's sandbox with its memory")(
                        error,
                    ));
                }
            }
        }
        // Everybody in it has written what they had to write.
        if let Err(error) = envd::shut_down(self.lab().machine()).await {
            return self.told(Err(gone(&error))).await.map(|()| Memory::None);
        }
        self.lab()
            .machine()
            .checkpoint(result, false)
            .await
            .map_err(refused(STEP, "copying the disk of the build's sandbox"))?;
        failpoint::reach("node/build-result");
        Ok(Memory::None)
    }

    /// Lets sandboxes begin with what the last step has left.
    async fn seal(&mut self) -> Result<(), BuildError> {
        self.leash.check(STEP)?;
        self.runtime()
            .seal(self.at, self.order.build)
            .await
            .map_err(refused(STEP, "sealing the result of the build"))?;
        failpoint::reach("node/build-result");
        Ok(())
    }

    fn lab(&mut self) -> &mut Lab {
        self.lab.as_mut().expect("it was opened for this part")
    }
}

/// Starts the start command, and waits until it has come up; or tells why it did not.
async fn up(
    machine: &dyn Machine,
    talk: &Talk,
    start: &StartCommand,
    ready: Option<&str>,
    context: &Context,
) -> Result<(), String> {
    let command = cut(&start.command, COMMAND_BYTES_MAX);
    let lost = |error: ProgramError| match error {
        ProgramError::Refused(why) => format!("the start command could not be started: {why}: {command}"),
        ProgramError::Connection(error) => gone(&error),
    };
    let program = Program::new(&start.command, context);
    let mut running = program::start(machine, &program).await.map_err(lost)?;
    let mut printer = Printer::new(talk, STEP, Level::Info, "start");
    let mut has_ended = false;
    let is_ready = async {
        match ready {
            Some(ready) => until_ready(machine, talk, ready, context).await,
            None => {
                let said = format!(
                    "Waiting for template to be ready: sleep {}",
                    READY_BY_DEFAULT.as_secs()
                );
                talk.say(STEP, Level::Info, said).await;
                tokio::time::sleep(READY_BY_DEFAULT).await;
                Ok(())
            }
        }
    };
    tokio::pin!(is_ready);
    let outcome = loop {
        tokio::select! {
            // A start command that failed is told, also when it is ready at the same time.
            biased;
            event = running.next(), if !has_ended => match event {
                Ok(Event::Stdout(bytes)) => printer.out(&bytes).await,
                Ok(Event::Stderr(bytes)) => printer.err(&bytes).await,
                Ok(Event::End(exit)) if !exit.is_success() => {
                    break Err(format!("the start command ended with {exit} before the template was ready: {command}"));
                }
                // It has left something behind that runs, or there was nothing to wait for.
                Ok(Event::End(_)) if ready.is_none() => break Ok(()),
                Ok(Event::End(_)) => has_ended = true,
                Err(error) => break Err(lost(error)),
            },
            ready = &mut is_ready => break ready,
        }
    };
    printer.end().await;
    outcome
}

/// Runs the ready command until it succeeds, or tells why it does not.
async fn until_ready(
    machine: &dyn Machine,
    talk: &Talk,
    ready: &str,
    context: &Context,
) -> Result<(), String> {
    let command = cut(ready, COMMAND_BYTES_MAX);
    let said = format!("Waiting for template to be ready: {command}");
    talk.say(STEP, Level::Info, said).await;
    let until = Instant::now() + READY_WITHIN;
    let mut last = "it has not ended yet".to_owned();
    let polled = tokio::time::timeout_at(until, async {
        loop {
            let printer = Printer::new(talk, STEP, Level::Debug, "ready");
            last = match hear(machine, &Program::new(ready, context), printer).await {
                Ok(exit) if exit.is_success() => return Ok(()),
                Ok(exit) => format!("it ended with {exit}"),
                Err(ProgramError::Refused(why)) => {
                    return Err(format!(
                        "the ready command could not be started: {why}: {command}"
                    ));
                }
                Err(ProgramError::Connection(error)) => return Err(gone(&error)),
            };
            talk.say(STEP, Level::Debug, format!("Template is not ready: {last}"))
                .await;
            tokio::time::sleep(READY_EVERY).await;
        }
    });
    match polled.await {
        Ok(Ok(())) => {
            talk.say(STEP, Level::Info, "Template is ready".to_owned()).await;
            Ok(())
        }
        Ok(Err(why)) => Err(why),
        Err(_) => Err(format!(
            "the ready command did not succeed within {}; {last}: {command}",
            humantime::format_duration(READY_WITHIN)
        )),
    }
}
