//! The steps of a recipe, each carried out in a lab (contract 4.2).
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use http_body::Frame;
use http_body_util::StreamBody;
use model::BuildStep;
use model::recipe::{Action, Context};
use ports::blobs::BlobError;
use ports::builds::{BuildError, BuildShelf};
use ports::{Level, Machine};
use wire::host_calls::{Copied, Copy, EnterWorkdir, Entered, Evaluate, Evaluated, MakeUser, UserMade};

use super::host_call::{self, HostCallError};
use super::lab::Lab;
use super::leash::{failure, fault};
use super::program::{self, Event, Exit, Program, ProgramError};
use super::talk::{Printer, Talk, cut};
use super::upload;

/// A command is shown up to here when it failed.
const COMMAND_BYTES_MAX: usize = 1 << 10;
/// The longest variable that the kernel passes to a program (`MAX_ARG_STRLEN`).
const VARIABLE_BYTES_MAX: usize = 128 << 10;
/// All variables together: programs get a third of a stack of 8 MiB for them and their arguments.
const ENV_BYTES_MAX: usize = 1 << 20;
/// No path that the kernel takes is longer (`PATH_MAX`).
const PATH_BYTES_MAX: usize = 4096;
/// No name of a user is longer (`LOGIN_NAME_MAX`).
const USER_BYTES_MAX: usize = 256;

/// What a step has left.
#[derive(Debug)]
pub(super) struct Done {
    /// With what the next one runs.
    pub(super) context: Context,
    /// Whether it may have written to the disk.
    pub(super) wrote: bool,
}

/// A step, as the log names it.
pub(super) fn describe(action: &Action) -> String {
    match action {
        Action::Copy {
            source, destination, ..
        } => format!("COPY {source} {destination}"),
        Action::Run { command, .. } => format!("RUN {command}"),
        Action::Env(pairs) => {
            let mut text = "ENV".to_owned();
            for (name, value) in pairs {
                text.extend([" ", name, "=", value]);
            }
            text
        }
        Action::Workdir(path) => format!("WORKDIR {path}"),
        Action::User { name, .. } => format!("USER {name}"),
    }
}

/// Where a step is carried out, and who hears of it.
pub(super) struct Bench<'a> {
    pub(super) lab: &'a mut Lab,
    pub(super) talk: &'a Talk,
    pub(super) shelf: &'a dyn BuildShelf,
    /// Which one it is.
    pub(super) step: BuildStep,
    /// Before each line that its programs write.
    pub(super) prefix: &'a str,
}

impl Bench<'_> {
    /// Carries out a step.
    pub(super) async fn carry_out(&mut self, action: &Action, before: &Context) -> Result<Done, BuildError> {
        let mut context = before.clone();
        match action {
            Action::Run { command, user } => {
                let program = Program {
                    user: user.as_deref().unwrap_or(&context.user),
                    ..Program::new(command, &context)
                };
                self.run(&program).await?;
            }
            Action::Copy {
                source,
                destination,
                owner,
                mode,
                files,
            } => {
                let copy = Copy {
                    source: source.clone(),
                    destination: destination.clone(),
                    owner: owner.clone(),
                    mode: *mode,
                    user: context.user.clone(),
                    workdir: context.workdir.clone(),
                };
                self.copy(&copy, files).await?;
            }
            Action::Env(pairs) => {
                self.set(&mut context, pairs).await?;
                return Ok(Done {
                    context,
                    wrote: false,
                });
            }
            Action::Workdir(path) => context.workdir = Some(self.enter(path, before).await?),
            Action::User { name, sudo } => context.user = self.make_user(name, *sudo).await?,
        }
        Ok(Done { context, wrote: true })
    }

    async fn run(&mut self, program: &Program<'_>) -> Result<(), BuildError> {
        let printer = Printer::new(self.talk, self.step, Level::Info, self.prefix);
        let command = cut(program.command, COMMAND_BYTES_MAX);
        let what = match hear(self.lab.machine(), program, printer).await {
            Ok(exit) if exit.is_success() => return Ok(()),
            Ok(exit) => format!("the command failed with {exit}: {command}"),
            Err(ProgramError::Refused(why)) => format!("the command could not be started: {why}: {command}"),
            Err(ProgramError::Connection(error)) => format!("{}: {command}", gone(&error)),
        };
        Err(self.failed(what).await)
    }

    async fn copy(&mut self, copy: &Copy, files: &str) -> Result<(), BuildError> {
        let target = copy
            .target()
            .map_err(|error| failure(self.step, error.to_string()))?;
        let upload = self.shelf.upload(files).await.map_err(|error| match error {
            BlobError::Missing(_) => failure(
                self.step,
                format!("the files of this step were not uploaded (hash {files}); build the template again"),
            ),
            error => fault("reading an upload")(error),
        })?;
        let broken: Arc<Mutex<Option<io::Error>>> = Arc::default();
        let note = Arc::clone(&broken);
        let body = StreamBody::new(upload.map(move |piece| {
            piece.map(Frame::data).map_err(|error| {
                let told = io::Error::new(error.kind(), "the upload broke off");
                *note.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                told
            })
        }));
        let copied: Result<Copied, _> =
            host_call::send(self.lab.machine(), &target, "application/x-tar", body).await;
        let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (copied, broken) {
            (_, Some(error)) => Err(fault("reading an upload")(error)),
            (Ok(copied), None) => {
                let said = format!("[{}] {} files, {} bytes", self.prefix, copied.files, copied.bytes);
                self.talk.say(self.step, Level::Debug, said).await;
                Ok(())
            }
            (Err(error), None) => {
                let was_heard = matches!(error, HostCallError::Refused { .. });
                let mut refused = self.refused("COPY", error).await;
                if let BuildError::Recipe(failure) = &mut refused
                    && was_heard
                    && self.discard_if_broken(files).await
                {
                    failure.message += "; what was uploaded is broken and was removed: build the template again, and it is asked for anew";
                }
                Err(refused)
            }
        }
    }

    /// Removes an upload that is no archive, so that nobody is told that it is there. Whether it was.
    async fn discard_if_broken(&self, files: &str) -> bool {
        let Ok(bytes) = self.shelf.upload(files).await else {
            return false;
        };
        let is_broken = upload::is_broken(bytes).await;
        if is_broken {
            self.shelf.discard_upload(files).await;
        }
        is_broken
    }

    async fn set(&mut self, context: &mut Context, pairs: &[(String, String)]) -> Result<(), BuildError> {
        let question = Evaluate {
            values: pairs.to_vec(),
            ..Evaluate::default()
        };
        let answer: Result<Evaluated, _> = host_call::ask(self.lab.machine(), "/host/env", &question).await;
        let evaluated = match answer {
            Ok(evaluated) => evaluated.values,
            Err(error) => return Err(self.refused("ENV", error).await),
        };
        let asked = pairs.iter().map(|(name, _)| name);
        if !asked.eq(evaluated.iter().map(|(name, _)| name)) {
            return Err(self.odd("variables that were not asked for"));
        }
        for (name, value) in evaluated {
            if value.len() > VARIABLE_BYTES_MAX || value.contains('\0') {
                let message = format!(
                    "the variable {name} comes out longer than {VARIABLE_BYTES_MAX} bytes, or with a NUL byte"
                );
                return Err(failure(self.step, message));
            }
            context.set(&name, value);
        }
        let all: usize = context
            .env
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if all > ENV_BYTES_MAX {
            let message =
                format!("the variables of the template are longer than {ENV_BYTES_MAX} bytes together");
            return Err(failure(self.step, message));
        }
        Ok(())
    }

    async fn enter(&mut self, path: &str, context: &Context) -> Result<String, BuildError> {
        let question = EnterWorkdir {
            path: path.to_owned(),
            previous: context.workdir.clone(),
            user: context.user.clone(),
        };
        let answer: Result<Entered, _> = host_call::ask(self.lab.machine(), "/host/workdir", &question).await;
        match answer {
            Ok(Entered { path }) if is_path(&path) => Ok(path),
            Ok(_) => Err(self.odd("a directory that is none")),
            Err(error) => Err(self.refused("WORKDIR", error).await),
        }
    }

    async fn make_user(&mut self, name: &str, sudo: bool) -> Result<String, BuildError> {
        let question = MakeUser {
            name: name.to_owned(),
            sudo,
        };
        let answer: Result<UserMade, _> = host_call::ask(self.lab.machine(), "/host/user", &question).await;
        match answer {
            Ok(made) if is_user(&made.name) => Ok(made.name),
            Ok(_) => Err(self.odd("a user that is none")),
            Err(error) => Err(self.refused("USER", error).await),
        }
    }

    /// What its owner is told of a call that envd did not carry out.
    async fn refused(&mut self, what: &str, error: HostCallError) -> BuildError {
        match error {
            HostCallError::Refused { status, message } => match status.as_u16() {
                // It does not know the call: it is not the envd of this node.
                404 | 405 | 501 => fault("carrying out a step")(HostCallError::Refused { status, message }),
                // It has said what is the matter.
                400 | 507 => failure(self.step, format!("{what} failed: {message}")),
                _ => self.failed(format!("{what} failed: {message}")).await,
            },
            HostCallError::Connection(error) => self.failed(format!("{what} failed: {}", gone(&error))).await,
        }
    }

    /// A failure, with what can be seen of its reason from outside.
    async fn failed(&mut self, what: String) -> BuildError {
        failure(
            self.step,
            match self.lab.trouble().await {
                Some(trouble) => format!("{what} ({trouble})"),
                None => what,
            },
        )
    }

    fn odd(&self, what: &str) -> BuildError {
        failure(self.step, format!("the build's sandbox answered with {what}"))
    }
}

/// How the loss of a connection is told, with its reasons.
pub(super) fn gone(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut reason = error.source();
    while let Some(error) = reason {
        text = format!("{text}: {error}");
        reason = error.source();
    }
    format!("the build's sandbox stopped answering: {text}")
}

/// Runs a program to its end, printing what it says.
pub(super) async fn hear(
    machine: &dyn Machine,
    program: &Program<'_>,
    mut printer: Printer<'_>,
) -> Result<Exit, ProgramError> {
    let mut running = program::start(machine, program).await?;
    let end = loop {
        match running.next().await {
            Ok(Event::Stdout(bytes)) => printer.out(&bytes).await,
            Ok(Event::Stderr(bytes)) => printer.err(&bytes).await,
            Ok(Event::End(exit)) => break Ok(exit),
            Err(error) => break Err(error),
        }
    };
    printer.end().await;
    end
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= PATH_BYTES_MAX && !path.contains('\0')
}

/// Commands are run as `name:`, without a password.
fn is_user(name: &str) -> bool {
    !name.is_empty() && name.len() <= USER_BYTES_MAX && !name.contains([':', '\0', '\n'])
}
