//! Stops that a program in a sandbox sees: a loop that does little, and notes how long its turns take.
//!
//! ```text
//! <dir>/ask    somebody wants to know: made from outside, removed by the program
//! <dir>/told   the longest turn since it was asked last, in microseconds
//! ```
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use sdk::{CallError, Program, SandboxClient};

/// A turn sleeps so long.
const TURN: Duration = Duration::from_millis(1);
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
const PROGRAM: &str = "/home/user/watch";

/// Watches for ever; with `writes`, each turn appends to a file beside.
pub(crate) fn watch(dir: &Path, writes: bool) -> Result<()> {
    fs::create_dir_all(dir)?;
    let (ask, told) = (dir.join("ask"), dir.join("told"));
    let mut beside = File::create(dir.join("beside"))?;
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        #[expect(clippy::disallowed_methods, reason = "there is no runtime here")]
        std::thread::sleep(TURN);
        if writes {
            beside.write_all(&[7; 512])?;
        }
        let now = Instant::now();
        longest = longest.max(now - last);
        last = now;
        if ask.exists() {
            fs::remove_file(&ask)?;
            let partial = dir.join("partial");
            fs::write(&partial, longest.as_micros().to_string())?;
            fs::rename(&partial, &told)?;
            (last, longest) = (Instant::now(), Duration::ZERO);
        }
    }
}

/// A watching program in a sandbox.
pub(crate) struct Watch<'a> {
    inside: &'a SandboxClient,
    dir: String,
}

impl<'a> Watch<'a> {
    /// Starts one that writes, or one that does not.
    pub(crate) async fn start(inside: &'a SandboxClient, writes: bool) -> Result<Self> {
        let dir = format!("/home/user/watch-{writes}");
        if inside.stat(PROGRAM, None).await.is_err() {
            let program = fs::read(std::env::current_exe()?)?;
            inside.write_file(PROGRAM, None, Bytes::from(program)).await?;
            crate::house::command(inside, &["/bin/chmod", "+x", PROGRAM]).await?;
        }
        let program = Program {
            cmd: PROGRAM.to_owned(),
            args: vec!["watch".to_owned(), dir.clone(), writes.to_string()],
            ..Program::default()
        };
        // Nobody listens to it: it tells by files, so that no connection is there while it is copied.
        drop(inside.start(program).await?);
        let watch = Self { inside, dir };
        watch.longest().await?;
        Ok(watch)
    }

    /// The longest stop since this was asked last.
    pub(crate) async fn longest(&self) -> Result<Duration> {
        let told = format!("{}/told", self.dir);
        self.inside.write_file(&told, None, Bytes::new()).await?;
        self.inside
            .write_file(&format!("{}/ask", self.dir), None, Bytes::new())
            .await?;
        let until = Instant::now() + ANSWERS_WITHIN;
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let text = match self.inside.read_file(&told, None).await {
                Ok(file) => file.bytes(64).await?,
                // It is being replaced.
                Err(CallError::Refused { .. }) => Bytes::new(),
                Err(error) => return Err(error.into()),
            };
            if !text.is_empty() {
                let micros = std::str::from_utf8(&text)?
                    .parse()
                    .context("it tells microseconds")?;
                return Ok(Duration::from_micros(micros));
            }
            ensure!(
                Instant::now() < until,
                "the program that watches in a sandbox does not answer"
            );
        }
    }
}
