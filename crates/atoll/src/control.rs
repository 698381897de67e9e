//! A word with the running daemon: one line over a socket in the data directory, answered by one line of JSON.
//!
//! A request is a word, or JSON where it says more. An answer is what was asked for, or `{"failed": why}`.
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::house::House;

const SOCKET: &str = "control.sock";
/// A path, and two names.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Ending a thousand sandboxes takes seconds; an image of 32 GiB comes from a slow disk within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(3600);

/// What is asked of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// What it is at.
    Status,
    /// To end all sandboxes, and then itself.
    Down,
    /// To remove what nothing needs.
    Gc,
    /// To make the template `base` anew, of this machine's own `/usr`.
    ImportHost,
    /// To take an image from a file.
    Import {
        /// Where: absolute.
        path: PathBuf,
        /// What it is to be called.
        name: Option<String>,
        /// Which of several.
        image: Option<String>,
    },
    /// Which images were imported.
    Images,
    /// To forget an image.
    Forget {
        /// Which.
        name: String,
    },
}

impl Request {
    /// Daemons of before know words alone.
    fn line(&self) -> serde_json::Result<String> {
        Ok(match serde_json::to_value(self)? {
            serde_json::Value::String(word) => word,
            more => more.to_string(),
        })
    }

    fn parse(line: &str) -> serde_json::Result<Self> {
        if line.starts_with('{') {
            serde_json::from_str(line)
        } else {
            serde_json::from_value(line.into())
        }
    }
}

/// Why the daemon did not do it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Failed {
    failed: String,
}

/// What the daemon answers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer<T> {
    Failed(Failed),
    Done(T),
}

/// What a daemon says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) runtime: String,
    pub(crate) started_at: String,
    pub(crate) api_url: String,
    pub(crate) sandbox_url: String,
    pub(crate) running: usize,
    pub(crate) paused: usize,
    pub(crate) slots_ready: u32,
    /// The program by which memory outlives processes, where there is one.
    #[serde(default)]
    pub(crate) criu: Option<PathBuf>,
}

/// The daemon's answer to `down`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) ended: usize,
    pub(crate) error: Option<String>,
}

/// The daemon's answer to `import-host`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Remade {
    /// What sandboxes of the base template start from now.
    #[serde(rename = "buildID")]
    pub(crate) build_id: String,
}

/// Listens until `shutdown`. After `down` has been answered, it cancels `shutdown` itself.
pub(crate) async fn serve(house: Arc<House>, shutdown: CancellationToken) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = house.data.path().join(SOCKET);
    let _ = std::fs::remove_file(&path);
    let short = Short::of(house.data.path())?;
    let listener = tokio::net::UnixListener::bind(short.path())
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.map(|(stream, _)| stream),
            () = shutdown.cancelled() => return Ok(()),
        };
        let Ok(stream) = stream else { continue };
        let (house, shutdown) = (Arc::clone(&house), shutdown.clone());
        tokio::spawn(async move {
            if let Err(error) = answer(&house, stream, &shutdown).await {
                tracing::warn!("the control socket: {error:#}");
            }
        });
    }
}

async fn answer(
    house: &House,
    mut stream: tokio::net::UnixStream,
    shutdown: &CancellationToken,
) -> Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    tokio::io::BufReader::new(read.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .await?;
    let request = Request::parse(line.trim());
    let is_down = matches!(request, Ok(Request::Down));
    let answered = match request {
        Ok(request) => carry_out(house, request).await,
        Err(_) => bail!("unknown command {:?}", line.chars().take(64).collect::<String>()),
    };
    let answer = match answered {
        Ok(answer) => answer,
        Err(error) => serde_json::to_string(&Failed {
            failed: format!("{error:#}"),
        })?,
    };
    write.write_all(format!("{answer}\n").as_bytes()).await?;
    if is_down {
        shutdown.cancel();
    }
    Ok(())
}

/// Does what is asked, and says what came of it.
async fn carry_out(house: &House, request: Request) -> Result<String> {
    Ok(match request {
        Request::Status => serde_json::to_string(&house.status().await?)?,
        Request::Down => serde_json::to_string(&house.end_sandboxes().await)?,
        Request::Gc => serde_json::to_string(&house.collect().await?)?,
        Request::ImportHost => serde_json::to_string(&house.import_host().await?)?,
        Request::Import { path, name, image } => {
            let imported = house
                .import_image(&path, name.as_deref(), image.as_deref())
                .await?;
            serde_json::to_string(&imported)?
        }
        Request::Images => serde_json::to_string(&house.imported_images().await?)?,
        Request::Forget { name } => serde_json::to_string(&house.forget_image(&name).await?)?,
    })
}

/// Asks the daemon of a data directory.
pub(crate) fn ask<T: for<'de> Deserialize<'de>>(data: &Path, request: &Request) -> Result<T> {
    ask_within(data, request, ANSWER_WITHIN)
}

/// Asks it, and does not wait for longer.
pub(crate) fn ask_within<T: for<'de> Deserialize<'de>>(
    data: &Path,
    request: &Request,
    within: Duration,
) -> Result<T> {
    let short = Short::of(data)?;
    let mut stream = UnixStream::connect(short.path())
        .with_context(|| format!("no daemon answers at {}", data.join(SOCKET).display()))?;
    stream.set_read_timeout(Some(within))?;
    let asked = request.line()?;
    stream.write_all(format!("{asked}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        bail!(
            "the daemon does not answer {asked}: it ended, or it is of another version; its log may say why"
        );
    }
    let answer = serde_json::from_str(&line);
    match answer.with_context(|| format!("the daemon's answer to {asked} is broken"))? {
        Answer::Failed(Failed { failed }) => bail!(failed),
        Answer::Done(done) => Ok(done),
    }
}

/// A path of the socket that fits into a socket address, however long the data directory's is.
struct Short(std::fs::File);

impl Short {
    fn of(data: &Path) -> Result<Self> {
        std::fs::File::open(data)
            .map(Self)
            .with_context(|| format!("cannot open {}", data.display()))
    }
    fn path(&self) -> String {
        format!("/proc/self/fd/{}/{SOCKET}", self.0.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_words_or_json_and_come_back_as_they_were() {
        for (request, line) in [
            (Request::Down, "down"),
            (Request::Status, "status"),
            (Request::ImportHost, "import-host"),
            (
                Request::Forget {
                    name: "a\nb".to_owned(),
                },
                r#"{"forget":{"name":"a\nb"}}"#,
            ),
        ] {
            assert_eq!(request.line().unwrap(), line);
            assert_eq!(Request::parse(line).unwrap(), request);
        }
        assert!(Request::parse("halt").is_err());
    }

    #[test]
    fn a_failure_is_told_from_an_answer() {
        let failed = serde_json::from_str::<Answer<Vec<u8>>>(r#"{"failed":"no room"}"#);
        assert!(matches!(failed, Ok(Answer::Failed(Failed { failed })) if failed == "no room"));
        assert!(matches!(
            serde_json::from_str::<Answer<()>>("null"),
            Ok(Answer::Done(()))
        ));
        let ended: Answer<Ended> = serde_json::from_str(r#"{"ended":1,"error":null}"#).unwrap();
        assert!(matches!(ended, Answer::Done(Ended { ended: 1, .. })));
    }
}
