use std::collections::BTreeMap;

use anyhow::{Result, bail};
use model::Kind;
use sdk::{CallError, EntryKind, FileReader, Program, SandboxClient, Upload, VolumeClient};
use wire::rest::{ChangeVolumeEntry, VolumeEntry, VolumeEntryKind};

/// What lies at a path there, as the other side tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Not trusted.
    pub(super) name: String,
    pub(super) kind: SeenKind,
    /// Permission bits.
    pub(super) mode: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeenKind {
    File,
    Directory,
    Other,
}

/// Permissions of files that are nothing special.
const ORDINARY: u32 = 0o644;
/// Files whose permissions are changed at a time: their paths are the arguments of one program.
const CHANGED_MAX: usize = 64;

/// The other side.
pub(super) trait Remote {
    /// What lies at a path that a person named, its last link followed; none where nothing does.
    async fn stat(&self, path: &str) -> Result<Option<Seen>, CallError>;
    /// What lies in a directory. Links to directories count as something else, so that there is an end.
    async fn list(&self, path: &str) -> Result<Vec<Seen>, CallError>;
    /// Opens a file.
    async fn read(&self, path: &str) -> Result<FileReader, CallError>;
    /// Writes a file, and makes the directories above it.
    async fn write(&mut self, path: &str, content: Upload, mode: Option<u32>) -> Result<()>;
    /// Makes a directory; one that is there is no error.
    async fn make_dir(&mut self, path: &str, mode: u32) -> Result<(), CallError>;
    /// Does what is left to do.
    async fn finish(&mut self) -> Result<()>;
}

fn found<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(CallError::Refused {
            kind: Kind::NotFound, ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A sandbox.
pub(super) struct Sandbox {
    inside: SandboxClient,
    user: Option<String>,
    /// Files that are to get other permissions than new ones have, which only a program inside can give them.
    unchanged: BTreeMap<u32, Vec<String>>,
}

impl Sandbox {
    pub(super) const fn new(inside: SandboxClient, user: Option<String>) -> Self {
        Self {
            inside,
            user,
            unchanged: BTreeMap::new(),
        }
    }

    async fn change(&self, mode: u32, paths: Vec<String>) -> Result<()> {
        let mut args = vec![format!("{mode:04o}"), "--".to_owned()];
        args.extend(paths);
        let program = Program {
            cmd: "chmod".to_owned(),
            args,
            cwd: Some("/".to_owned()),
            user: self.user.clone(),
            ..Program::default()
        };
        let exit = self.inside.start(program).await?.wait().await?;
        if exit.code() != 0 {
            bail!(
                "chmod in the sandbox ended with {}",
                super::super::words::short(&exit.status)
            );
        }
        Ok(())
    }
}

fn of_entry(entry: sdk::Entry, follows_directories: bool) -> Seen {
    let kind = match entry.kind {
        EntryKind::File => SeenKind::File,
        EntryKind::Directory if follows_directories || !entry.is_link => SeenKind::Directory,
        EntryKind::Directory | EntryKind::Other => SeenKind::Other,
    };
    Seen {
        name: entry.name,
        kind,
        mode: entry.mode,
    }
}

impl Remote for Sandbox {
    async fn stat(&self, path: &str) -> Result<Option<Seen>, CallError> {
        let answer = found(self.inside.stat(path, self.user.as_deref()).await)?;
        Ok(answer.map(|entry| of_entry(entry, true)))
    }

    async fn list(&self, path: &str) -> Result<Vec<Seen>, CallError> {
        let entries = self.inside.list_dir(path, self.user.as_deref()).await?;
        Ok(entries.into_iter().map(|entry| of_entry(entry, false)).collect())
    }

    async fn read(&self, path: &str) -> Result<FileReader, CallError> {
        self.inside.read_file(path, self.user.as_deref()).await
    }

    async fn write(&mut self, path: &str, content: Upload, mode: Option<u32>) -> Result<()> {
        self.inside
            .upload_file(path, self.user.as_deref(), content)
            .await?;
        if let Some(mode) = mode.filter(|mode| *mode != ORDINARY) {
            let waiting = self.unchanged.entry(mode).or_default();
            waiting.push(path.to_owned());
            if waiting.len() >= CHANGED_MAX {
                let paths = std::mem::take(waiting);
                self.change(mode, paths).await?;
            }
        }
        Ok(())
    }

    async fn make_dir(&mut self, path: &str, _: u32) -> Result<(), CallError> {
        self.inside.make_dir(path, self.user.as_deref()).await.map(drop)
    }

    async fn finish(&mut self) -> Result<()> {
        for (mode, paths) in std::mem::take(&mut self.unchanged) {
            if !paths.is_empty() {
                self.change(mode, paths).await?;
            }
        }
        Ok(())
    }
}

/// A volume.
pub(super) struct Volume(pub(super) VolumeClient);

fn of_volume(entry: VolumeEntry) -> Seen {
    let kind = match entry.kind {
        VolumeEntryKind::File => SeenKind::File,
        VolumeEntryKind::Directory => SeenKind::Directory,
        VolumeEntryKind::Symlink | VolumeEntryKind::Unknown => SeenKind::Other,
    };
    Seen {
        name: entry.name,
        kind,
        mode: entry.mode & 0o777,
    }
}

fn with_mode(mode: Option<u32>) -> ChangeVolumeEntry {
    ChangeVolumeEntry {
        mode,
        ..ChangeVolumeEntry::default()
    }
}

impl Remote for Volume {
    async fn stat(&self, path: &str) -> Result<Option<Seen>, CallError> {
        Ok(found(self.0.stat(path).await)?.map(of_volume))
    }

    async fn list(&self, path: &str) -> Result<Vec<Seen>, CallError> {
        Ok(self.0.list(path, 1).await?.into_iter().map(of_volume).collect())
    }

    async fn read(&self, path: &str) -> Result<FileReader, CallError> {
        self.0.read(path).await
    }

    async fn write(&mut self, path: &str, content: Upload, mode: Option<u32>) -> Result<()> {
        self.0.write(path, content, with_mode(mode), true).await?;
        Ok(())
    }

    async fn make_dir(&mut self, path: &str, mode: u32) -> Result<(), CallError> {
        self.0.make_dir(path, with_mode(Some(mode)), true).await.map(drop)
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
