//! `atoll template build`.
//!
//! ```text
//! Dockerfile, context ─▶ steps, hashes ─▶ register ─▶ upload what is not there ─▶ start ─▶ watch
//! ```
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use sdk::Client;
use serde_json::json;
use wire::rest::{BuildReason, BuildStatus, NewBuild, RegisteredBuild, Registry, StartBuild, TemplateStep};

use super::follow::{News, Watch, shown};
use super::password;
use crate::client::context::{Context, Found, for_server};
use crate::client::dockerfile::{Action, Dockerfile};
use crate::client::sandbox::pair;
use crate::client::signals::Signals;
use crate::client::words::{plain, short};
use crate::out;

/// What `build` is told.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("from").required(true)))]
pub(crate) struct Build {
    /// What it is called: NAME, or NAME:TAG.
    name: String,
    /// A Dockerfile that says what it is.
    #[arg(long, short, value_name = "DOCKERFILE", group = "from")]
    file: Option<PathBuf>,
    /// The image that it is, as it is.
    #[arg(long, value_name = "IMAGE", group = "from")]
    from_image: Option<String>,
    /// The template that it is, with another start command or size.
    #[arg(long, value_name = "TEMPLATE", group = "from")]
    from_template: Option<String>,
    /// Where COPY copies from [default: the Dockerfile's directory].
    #[arg(long, value_name = "DIR", conflicts_with_all = ["from_image", "from_template"])]
    context: Option<PathBuf>,
    /// A value of one of the Dockerfile's ARGs, NAME=VALUE; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, conflicts_with_all = ["from_image", "from_template"])]
    build_arg: Vec<(String, String)>,
    /// Runs in its sandboxes from the start on [default: the Dockerfile's ENTRYPOINT and CMD].
    #[arg(long, value_name = "COMMAND")]
    start: Option<String>,
    /// Says by its exit code 0 that the start command has come up [default: 20 seconds pass].
    #[arg(long, value_name = "COMMAND")]
    ready: Option<String>,
    /// vCPUs of its sandboxes: 1, or an even number.
    #[arg(long)]
    cpu: Option<i64>,
    /// Memory of its sandboxes, in MiB; an even number.
    #[arg(long, value_name = "MIB")]
    memory: Option<i64>,
    /// What is to be free on the disk of its sandboxes, in MiB.
    #[arg(long, value_name = "MIB")]
    disk: Option<i64>,
    /// A tag that is to name it; may be given several times [default: `default`].
    #[arg(long)]
    tag: Vec<String>,
    /// Takes nothing from the cache.
    #[arg(long)]
    no_cache: bool,
    /// Who asks the image's registry. The password is read from `ATOLL_REGISTRY_PASSWORD`, or from standard input.
    #[arg(long, value_name = "USER", conflicts_with = "from_template")]
    registry_user: Option<String>,
    /// Starts it, and does not wait for its end.
    #[arg(long, short)]
    detach: bool,
}

/// What is built, before the server has heard of it.
struct Plan {
    recipe: StartBuild,
    /// For each step, the line of the Dockerfile and its words.
    parts: Vec<(usize, String)>,
    base_line: Option<usize>,
    start_line: Option<usize>,
    /// What is copied, by its hash.
    files: BTreeMap<String, Found>,
}

impl Build {
    pub(super) async fn run(self, api: &Client, json: bool) -> Result<ExitCode> {
        let mut plan = self.plan()?;
        if let Some(username) = &self.registry_user {
            let password = password::ask(username)?;
            plan.recipe.from_image_registry = Some(Registry::Basic {
                username: username.clone(),
                password,
            });
        }
        let build = api
            .register_build(&NewBuild {
                name: Some(self.name.clone()),
                tags: (!self.tag.is_empty()).then(|| self.tag.clone()),
                cpu_count: self.cpu,
                memory_mb: self.memory,
                min_free_disk_mb: self.disk,
                ..NewBuild::default()
            })
            .await?;
        for (hash, found) in &plan.files {
            upload(api, &build.template_id, hash, found).await?;
        }
        api.start_build(&build.template_id, &build.build_id, &plan.recipe)
            .await?;
        if self.detach {
            out::say(format_args!(
                "the build {} is under way: {}",
                build.build_id,
                logs_command(&build)
            ));
            return told(&build, BuildStatus::Building, None, json);
        }
        watch(api, &build, &plan, json).await
    }

    fn plan(&self) -> Result<Plan> {
        let mut recipe = StartBuild {
            from_image: self.from_image.clone(),
            from_template: self.from_template.clone(),
            start_cmd: self.start.clone(),
            ready_cmd: self.ready.clone(),
            force: Some(self.no_cache),
            ..StartBuild::default()
        };
        let Some(path) = &self.file else {
            recipe.steps = Some(Vec::new());
            return Ok(Plan {
                recipe,
                parts: Vec::new(),
                base_line: None,
                start_line: None,
                files: BTreeMap::new(),
            });
        };
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8(text).with_context(|| format!("{} is not UTF-8", path.display()))?;
        let dockerfile = Dockerfile::parse(&text, &self.build_arg.iter().cloned().collect())
            .with_context(|| format!("cannot build {}", path.display()))?;
        for remark in &dockerfile.remarks {
            out::say(plain(remark));
        }
        let beside = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let root = self.context.as_deref().or(beside).unwrap_or(Path::new("."));
        let mut context = None;
        let (mut steps, mut parts, mut files) = (Vec::new(), Vec::new(), BTreeMap::new());
        for step in dockerfile.steps {
            parts.push((step.line, step.action.shown()));
            let mut sent = TemplateStep {
                kind: String::new(),
                args: None,
                files_hash: None,
                force: None,
            };
            let (kind, args) = match step.action {
                Action::Copy {
                    source,
                    destination,
                    owner,
                    mode,
                } => {
                    let at_line = || format!("line {} of {}", step.line, path.display());
                    if context.is_none() {
                        context = Some(Context::open(root).with_context(at_line)?);
                    }
                    let opened = context.as_ref().context("the context was opened above")?;
                    let found = opened.find(&source).with_context(at_line)?;
                    for skipped in &found.skipped {
                        out::say(format_args!(
                            "{} is passed over: it is no file",
                            skipped.display()
                        ));
                    }
                    let hash = found.hash().with_context(at_line)?;
                    sent.files_hash = Some(hash.clone());
                    files.entry(hash).or_insert(found);
                    let mode = mode.map(|mode| format!("{mode:04o}"));
                    let args = [
                        for_server(&source),
                        destination,
                        owner.unwrap_or_default(),
                        mode.unwrap_or_default(),
                    ];
                    ("COPY", args.to_vec())
                }
                Action::Run(command) => ("RUN", vec![command]),
                Action::Env(pairs) => (
                    "ENV",
                    pairs
                        .into_iter()
                        .flat_map(|(name, value)| [name, value])
                        .collect(),
                ),
                Action::Workdir(path) => ("WORKDIR", vec![path]),
                Action::User(name) => ("USER", vec![name]),
            };
            sent.kind = kind.to_owned();
            sent.args = Some(args);
            steps.push(sent);
        }
        recipe.from_image = Some(dockerfile.base);
        recipe.steps = Some(steps);
        let mut start_line = None;
        if let (None, Some((command, line))) = (&recipe.start_cmd, dockerfile.start) {
            recipe.start_cmd = Some(command);
            start_line = Some(line);
        }
        Ok(Plan {
            recipe,
            parts,
            base_line: Some(dockerfile.base_line),
            start_line,
            files,
        })
    }
}

async fn upload(api: &Client, template: &str, hash: &str, found: &Found) -> Result<()> {
    let link = api.upload_link(template, hash).await?;
    if link.present {
        return Ok(());
    }
    let archive = found.pack(hash)?;
    out::say(format_args!(
        "sending {} KiB of files",
        archive.bytes.div_ceil(1024)
    ));
    let file = tokio::fs::File::from_std(archive.file);
    api.upload_files(&link, file, archive.bytes)
        .await
        .context("the files could not be sent")
}

/// Shows the log until the build is over. It goes on without us.
async fn watch(api: &Client, build: &RegisteredBuild, plan: &Plan, json: bool) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let mut watch = Watch::new(api, &build.template_id, &build.build_id);
    let mut waits = false;
    let info = loop {
        let News { info, is_last } = tokio::select! {
            biased;
            signal = signals.next() => {
                out::say(format_args!("the build {} goes on: {}", build.build_id, logs_command(build)));
                return Ok(signal.code());
            }
            news = watch.next(waits) => news.with_context(|| format!("the build may go on: {}", logs_command(build)))?,
        };
        waits = info.log_entries.is_empty();
        for line in &info.log_entries {
            out::talk(shown(line, &plan.part(line.step.as_deref())));
        }
        if is_last {
            break info;
        }
    };
    match info.status {
        BuildStatus::Ready => told(build, BuildStatus::Ready, None, json),
        _ => {
            let reason = info
                .reason
                .context("the build failed, and the server does not say why")?;
            let place = plan.place(reason.step.as_deref());
            out::say(format_args!("{place}{}", plain(&reason.message)));
            if json {
                told(build, BuildStatus::Error, Some((&reason, plan)), json)?;
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

fn logs_command(build: &RegisteredBuild) -> String {
    format!(
        "atoll template logs {} --build {} --follow",
        build.template_id, build.build_id
    )
}

fn told(
    build: &RegisteredBuild,
    status: BuildStatus,
    failure: Option<(&BuildReason, &Plan)>,
    json: bool,
) -> Result<ExitCode> {
    if !json {
        out::line(&build.template_id)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut document = json!({
        "templateID": build.template_id,
        "buildID": build.build_id,
        "names": build.names,
        "tags": build.tags,
        "status": status,
    });
    if let Some((reason, plan)) = failure {
        document["reason"] = json!({
            "message": reason.message,
            "step": reason.step,
            "line": plan.line(reason.step.as_deref()),
        });
    }
    out::json(&document)?;
    Ok(ExitCode::SUCCESS)
}

impl Plan {
    /// The step that the server's name of a part means, counted from 1.
    fn step(&self, name: Option<&str>) -> Option<(usize, &(usize, String))> {
        let number: usize = name?.parse().ok()?;
        Some((number, self.parts.get(number.checked_sub(1)?)?))
    }

    /// A part of the build, in front of its lines.
    fn part(&self, name: Option<&str>) -> String {
        match (self.step(name), name) {
            (Some((number, (_, words))), _) => format!("{number}/{} {words}", self.parts.len()),
            (None, Some(name)) => short(name),
            (None, None) => "build".to_owned(),
        }
    }

    /// The line of the Dockerfile that a part comes from.
    fn line(&self, name: Option<&str>) -> Option<usize> {
        match name {
            Some("base") => self.base_line,
            Some("finalize") => self.start_line,
            name => self.step(name).map(|(_, (line, _))| *line),
        }
    }

    /// Where a build failed, in front of why.
    fn place(&self, name: Option<&str>) -> String {
        let Some(name) = name else {
            return "the build failed: ".to_owned();
        };
        let line = self
            .line(Some(name))
            .map(|line| format!(", line {line} of the Dockerfile"));
        let line = line.unwrap_or_default();
        match self.step(Some(name)) {
            Some((number, (_, words))) => {
                format!("step {number} of {} ({words}){line} failed: ", self.parts.len())
            }
            None => format!("{}{line} failed: ", short(name)),
        }
    }
}

impl std::fmt::Debug for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Build")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        build: Build,
    }

    fn parsed(arguments: &[&str]) -> Result<Build, clap::Error> {
        Command::try_parse_from([&["build"], arguments].concat()).map(|command| command.build)
    }

    #[test]
    fn a_build_starts_from_one_thing() {
        assert!(parsed(&["x", "-f", "Dockerfile"]).is_ok());
        assert!(parsed(&["x", "--from-image", "a"]).is_ok());
        assert!(
            parsed(&[
                "x",
                "--from-template",
                "a",
                "--cpu",
                "2",
                "--tag",
                "v1",
                "--tag",
                "v2"
            ])
            .is_ok()
        );
        for wrong in [
            &["x"][..],
            &["x", "-f", "a", "--from-image", "b"],
            &["x", "--from-template", "a", "--context", "."],
            &["x", "--from-template", "a", "--registry-user", "u"],
            &["x", "--from-image", "a", "--build-arg", "A=1"],
            &["x", "-f", "a", "--build-arg", "A"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_dockerfile_becomes_what_the_server_takes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("Dockerfile");
        std::fs::write(
            &file,
            "FROM python:3\nCOPY --chmod=755 a /app/\nENV A=1\n\nRUN x\nCMD serve\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("a"), "content").unwrap();
        let build = parsed(&["x", "-f", file.to_str().unwrap(), "--ready", "true", "--no-cache"]).unwrap();
        let plan = build.plan().unwrap();
        let hash = plan.files.keys().next().unwrap();
        let expected = json!([
            ["USER", ["root"]],
            ["WORKDIR", ["/"]],
            ["COPY", ["a", "/app/", "", "0755"]],
            ["ENV", ["A", "1"]],
            ["RUN", ["x"]],
            ["USER", ["user"]],
            ["WORKDIR", ["/home/user"]],
        ]);
        let steps = plan.recipe.steps.as_deref().unwrap();
        let sent: Vec<_> = steps.iter().map(|step| json!([step.kind, step.args])).collect();
        assert_eq!(json!(sent), expected);
        assert_eq!(steps[2].files_hash.as_ref(), Some(hash));
        assert_eq!(plan.recipe.from_image.as_deref(), Some("python:3"));
        assert_eq!(plan.recipe.start_cmd.as_deref(), Some("serve"));
        assert_eq!(
            (plan.recipe.ready_cmd.as_deref(), plan.recipe.force),
            (Some("true"), Some(true))
        );
        assert_eq!(
            plan.place(Some("5")),
            "step 5 of 7 (RUN x), line 5 of the Dockerfile failed: "
        );
        assert_eq!(
            plan.place(Some("base")),
            "base, line 1 of the Dockerfile failed: "
        );
        assert_eq!(
            plan.place(Some("finalize")),
            "finalize, line 6 of the Dockerfile failed: "
        );
        assert_eq!(plan.part(Some("3")), "3/7 COPY a /app/");
        assert_eq!(plan.part(Some("8")), "8");
        assert_eq!(plan.part(Some("0")), "0");
    }

    #[test]
    fn what_is_missing_is_told_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("Dockerfile");
        std::fs::write(&file, "FROM python:3\n\nCOPY gone /app/\n").unwrap();
        let build = parsed(&["x", "-f", file.to_str().unwrap()]).unwrap();
        let error = format!("{:#}", build.plan().err().unwrap());
        assert!(error.contains("line 3") && error.contains("gone"), "{error}");
    }
}
