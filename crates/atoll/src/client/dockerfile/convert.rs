use std::collections::BTreeMap;

use super::lines::{self, Instruction, Source};
use super::words::{Value, Variables, json, quoted, split};
use super::{Action, Dockerfile, DockerfileError, Step};

/// What Docker and E2B's SDKs begin with, and what the SDKs leave where the Dockerfile says nothing else.
const FIRST_USER: &str = "root";
const FIRST_WORKDIR: &str = "/";
const LAST_USER: &str = "user";
const LAST_WORKDIR: &str = "/home/user";

type Result<T, E = DockerfileError> = std::result::Result<T, E>;

/// Makes steps of instructions.
pub(super) fn convert(source: &Source, arguments: &BTreeMap<String, String>) -> Result<Dockerfile> {
    let mut converter = Converter {
        escape: source.escape,
        arguments,
        unused: arguments.keys().cloned().collect(),
        global: BTreeMap::new(),
        values: BTreeMap::new(),
        environment: Vec::new(),
        base: None,
        steps: Vec::new(),
        remarks: Vec::new(),
        cmd: None,
        entrypoint: None,
        has_user: false,
        has_workdir: false,
    };
    for instruction in &source.instructions {
        converter
            .instruction(instruction)
            .map_err(|what| DockerfileError::at(instruction.line, what))?;
    }
    converter.finish(source)
}

/// A command in one of Docker's two forms.
enum Command {
    /// For a shell.
    Shell(String),
    /// A program with its arguments.
    Exec(Vec<String>),
}

struct Converter<'a> {
    escape: char,
    arguments: &'a BTreeMap<String, String>,
    unused: Vec<String>,
    /// What ARGs before FROM are.
    global: BTreeMap<String, Value>,
    /// What ARGs and ENVs after it are.
    values: BTreeMap<String, Value>,
    /// Which of them ENV set: no ARG changes those.
    environment: Vec<String>,
    base: Option<(String, usize)>,
    steps: Vec<Step>,
    remarks: Vec<String>,
    cmd: Option<(Command, usize)>,
    entrypoint: Option<(Command, usize)>,
    has_user: bool,
    has_workdir: bool,
}

impl Converter<'_> {
    fn instruction(&mut self, told: &Instruction) -> Result<(), String> {
        let name = told.name.as_str();
        if self.base.is_none() && !matches!(name, "FROM" | "ARG") {
            return Err(format!("{name} stands before FROM"));
        }
        match name {
            "FROM" => self.from(told),
            "RUN" => self.run(told),
            "COPY" | "ADD" => self.copy(told),
            "ENV" => self.env(told),
            "ARG" => self.arg(told),
            "WORKDIR" => {
                let path = self.one(told)?;
                self.has_workdir = true;
                self.step(told.line, Action::Workdir(path));
                Ok(())
            }
            "USER" => {
                let user = self.one(told)?;
                if user.contains(':') {
                    return Err("USER with a group is not supported: name the user alone".to_owned());
                }
                self.has_user = true;
                self.step(told.line, Action::User(user));
                Ok(())
            }
            "CMD" => {
                self.cmd = Some((command(told)?, told.line));
                Ok(())
            }
            "ENTRYPOINT" => {
                self.entrypoint = Some((command(told)?, told.line));
                // As Docker has it: a command of the image was for another program.
                Ok(())
            }
            // They say nothing that a template could do.
            "EXPOSE" | "LABEL" | "MAINTAINER" | "VOLUME" => Ok(()),
            "SHELL" => {
                self.remark(told.line, "SHELL is passed over: commands run by /bin/bash -l -c");
                Ok(())
            }
            "HEALTHCHECK" | "ONBUILD" | "STOPSIGNAL" => {
                self.remark(
                    told.line,
                    &format!("{name} is passed over: templates have no such thing"),
                );
                Ok(())
            }
            _ => Err(format!("{} is no instruction", crate::client::words::short(name))),
        }
    }

    fn finish(mut self, source: &Source) -> Result<Dockerfile> {
        let last = source.instructions.last().map_or(1, |told| told.line);
        let Some((base, base_line)) = self.base.take() else {
            return Err(DockerfileError::at(last, "there is no FROM"));
        };
        if let Some(unused) = self.unused.first() {
            return Err(DockerfileError::at(
                last,
                format!("no ARG takes the build argument {unused}"),
            ));
        }
        let start = self.start();
        // The SDKs leave it like this too, so that sandboxes are the same whoever builds them.
        if !self.has_user {
            self.step(last, Action::User(LAST_USER.to_owned()));
        }
        if !self.has_workdir {
            self.step(last, Action::Workdir(LAST_WORKDIR.to_owned()));
        }
        Ok(Dockerfile {
            base,
            base_line,
            steps: self.steps,
            start,
            remarks: self.remarks,
        })
    }

    fn from(&mut self, told: &Instruction) -> Result<(), String> {
        if self.base.is_some() {
            return Err("a second FROM: builds of several stages are not supported. Build the stages elsewhere, push the result, \
                        and begin with it"
                .to_owned());
        }
        let (flags, rest) = flags(&told.rest);
        for (flag, _) in flags {
            match flag {
                "platform" => self.remark(
                    told.line,
                    "--platform is passed over: images are of the node's platform",
                ),
                _ => return Err(unknown_flag("FROM", flag)),
            }
        }
        let words: Vec<&str> = rest.split_whitespace().collect();
        let image = match words[..] {
            [image] => image,
            [image, word, _] if word.eq_ignore_ascii_case("as") => image,
            _ => return Err("FROM takes one image, and AS with a name".to_owned()),
        };
        let image = self.expand_in(&self.global, image)?;
        let image = image
            .known()
            .map_err(|variable| format!("no ARG before FROM sets {variable}"))?;
        match image.as_str() {
            "" => return Err("FROM names no image".to_owned()),
            "scratch" => {
                return Err("FROM scratch is not supported: a sandbox needs bash and a C library".to_owned());
            }
            _ => {}
        }
        self.base = Some((image, told.line));
        self.step(told.line, Action::User(FIRST_USER.to_owned()));
        self.step(told.line, Action::Workdir(FIRST_WORKDIR.to_owned()));
        Ok(())
    }

    fn run(&mut self, told: &Instruction) -> Result<(), String> {
        let (flags, rest) = flags(&told.rest);
        for (flag, value) in flags {
            match (flag, value) {
                ("mount", Some(mount)) if mount_is_nothing(mount) => {
                    self.remark(
                        told.line,
                        "--mount of a cache is passed over: what it holds is kept in the template",
                    );
                }
                ("mount", _) => {
                    return Err("RUN --mount is supported for caches alone: copy files with COPY".to_owned());
                }
                ("network" | "security", Some(_)) => {
                    self.remark(
                        told.line,
                        &format!("--{flag} is passed over: builds run as sandboxes do"),
                    );
                }
                _ => return Err(unknown_flag("RUN", flag)),
            }
        }
        let command = match json(rest) {
            Some(words) if words.is_empty() => String::new(),
            Some(words) => quoted(&words),
            None => with_documents(told, rest)?,
        };
        if command.trim().is_empty() {
            return Err("RUN has no command".to_owned());
        }
        self.step(told.line, Action::Run(command));
        Ok(())
    }

    fn copy(&mut self, told: &Instruction) -> Result<(), String> {
        let name = told.name.as_str();
        if !told.documents.is_empty() {
            return Err(format!(
                "{name} of a here-document is not supported: write it to a file of the context, or with RUN"
            ));
        }
        let (flags, rest) = flags(&told.rest);
        let (mut owner, mut mode) = (None, None);
        for (flag, value) in flags {
            match (flag, value) {
                ("chown", Some(value)) => owner = Some(self.text(value)?),
                ("chmod", Some(value)) => mode = Some(permissions(&self.text(value)?)?),
                ("from", _) => {
                    return Err(format!(
                        "{name} --from is not supported: there is one stage, and images are not copied from"
                    ));
                }
                // They change how layers are kept, or are of addresses, which are refused.
                ("link" | "keep-git-dir" | "checksum", _) => {}
                ("exclude" | "parents" | "unpack", _) => {
                    return Err(format!("{name} --{flag} is not supported"));
                }
                _ => return Err(unknown_flag(name, flag)),
            }
        }
        let words = json(rest).unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect());
        let words: Result<Vec<String>, String> = words.iter().map(|word| self.text(word)).collect();
        let words = words?;
        let Some((destination, sources)) = words.split_last().filter(|(_, sources)| !sources.is_empty())
        else {
            return Err(format!("{name} takes sources and a destination"));
        };
        if sources.len() > 1 && !destination.ends_with('/') {
            return Err(format!(
                "of several sources, {name} needs a destination that ends with '/'"
            ));
        }
        for source in sources {
            let is_address = source.contains("://") || source.starts_with("git@");
            if name == "ADD" && is_address {
                return Err(format!(
                    "ADD of an address is not supported: fetch '{source}' with RUN"
                ));
            }
            let archives = [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"];
            if name == "ADD" && archives.iter().any(|end| source.ends_with(end)) {
                self.remark(
                    told.line,
                    &format!("ADD copies '{source}' as it is: unpack it with RUN"),
                );
            }
            self.step(
                told.line,
                Action::Copy {
                    source: source.clone(),
                    destination: destination.clone(),
                    owner: owner.clone(),
                    mode,
                },
            );
        }
        Ok(())
    }

    fn env(&mut self, told: &Instruction) -> Result<(), String> {
        let words = split(&told.rest, self.escape);
        let first = words.first().ok_or("ENV sets nothing")?;
        let pairs: Vec<(String, String)> = if first.contains('=') {
            let pair = |word: &String| {
                let (name, value) = word
                    .split_once('=')
                    .ok_or_else(|| format!("'{}' is not NAME=VALUE", crate::client::words::short(word)))?;
                Ok((name.to_owned(), value.to_owned()))
            };
            words.iter().map(pair).collect::<Result<_, String>>()?
        } else {
            // The old form: one variable, and all that follows is its value.
            let (name, value) = told
                .rest
                .split_once(char::is_whitespace)
                .ok_or_else(|| format!("'{}' is given no value", crate::client::words::short(first)))?;
            vec![(name.to_owned(), value.trim().to_owned())]
        };
        // All of one instruction see what was before it.
        let mut set = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            set.push((self.name(&name)?, self.expand_for_server(&value)?));
        }
        let mut sent = Vec::with_capacity(set.len());
        for (name, value) in set {
            sent.push((
                name.clone(),
                value.for_server().map_err(|why| format!("{name}: {why}"))?,
            ));
            if !self.environment.contains(&name) {
                self.environment.push(name.clone());
            }
            self.values.insert(name, value);
        }
        self.step(told.line, Action::Env(sent));
        Ok(())
    }

    fn arg(&mut self, told: &Instruction) -> Result<(), String> {
        let words = split(&told.rest, self.escape);
        if words.is_empty() {
            return Err("ARG names nothing".to_owned());
        }
        let mut sent = Vec::new();
        for word in words {
            let (name, default) = word
                .split_once('=')
                .map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
            let name = self.name(name)?;
            self.unused.retain(|unused| *unused != name);
            let given = self.arguments.get(&name).map(|given| Value::of(given));
            let is_global = self.base.is_none();
            let value = match (given, default) {
                (Some(given), _) => given,
                (None, Some(default)) if is_global => self.expand_in(&self.global, default)?,
                (None, Some(default)) => self.expand_for_server(default)?,
                (None, None) if is_global => continue,
                (None, None) => self.global.get(&name).cloned().unwrap_or_else(|| {
                    let remark =
                        format!("ARG {name} has no value, and is empty: --build-arg {name}=… gives it one");
                    self.remarks.push(remarked(told.line, &remark));
                    Value::default()
                }),
            };
            if is_global {
                self.global.insert(name, value);
            } else if !self.environment.contains(&name) {
                sent.push((
                    name.clone(),
                    value.for_server().map_err(|why| format!("{name}: {why}"))?,
                ));
                self.values.insert(name, value);
            }
        }
        if !sent.is_empty() {
            self.step(told.line, Action::Env(sent));
        }
        Ok(())
    }

    /// The one argument of an instruction.
    fn one(&self, told: &Instruction) -> Result<String, String> {
        let text = self.text(&told.rest)?;
        if text.trim().is_empty() || (told.name == "USER" && text.contains(char::is_whitespace)) {
            return Err(format!("{} takes one argument", told.name));
        }
        Ok(text)
    }

    /// The name of a variable.
    fn name(&self, text: &str) -> Result<String, String> {
        let name = self.text(text)?;
        let fits = |(at, b): (usize, u8)| {
            b == b'_' || b.is_ascii_alphabetic() || (at > 0 && (b.is_ascii_digit() || b == b'.' || b == b'-'))
        };
        if !name.is_empty() && name.bytes().enumerate().all(fits) {
            Ok(name)
        } else {
            Err(format!(
                "'{}' is no name of a variable",
                crate::client::words::short(text)
            ))
        }
    }

    /// A text that the server takes as it is.
    fn text(&self, text: &str) -> Result<String, String> {
        self.expand_in(&self.values, text)?.known().map_err(|variable| {
            format!("the Dockerfile does not set {variable}, and what the image sets is not known here: set it with ENV or ARG")
        })
    }

    fn expand_in(&self, values: &BTreeMap<String, Value>, text: &str) -> Result<Value, String> {
        let variables = Variables {
            values,
            escape: self.escape,
            passes_unknown: false,
        };
        variables.expand(text)
    }

    fn expand_for_server(&self, text: &str) -> Result<Value, String> {
        let variables = Variables {
            values: &self.values,
            escape: self.escape,
            passes_unknown: true,
        };
        variables.expand(text)
    }

    fn start(&self) -> Option<(String, usize)> {
        let (command, line) = match (&self.entrypoint, &self.cmd) {
            (None, None) => return None,
            (None, Some((Command::Shell(command), line)))
            // A shell takes no more arguments, so that CMD says nothing.
            | (Some((Command::Shell(command), line)), _) => (command.clone(), *line),
            (None, Some((Command::Exec(words), line))) => (quoted(words), *line),
            (Some((Command::Exec(words), line)), more) => {
                let mut words = words.clone();
                match more {
                    Some((Command::Exec(more), _)) => words.extend(more.iter().cloned()),
                    Some((Command::Shell(command), _)) if !command.is_empty() => {
                        words.extend(["/bin/sh".to_owned(), "-c".to_owned(), command.clone()]);
                    }
                    _ => {}
                }
                (quoted(&words), *line)
            }
        };
        (!command.trim().is_empty()).then_some((command, line))
    }

    fn step(&mut self, line: usize, action: Action) {
        self.steps.push(Step { line, action });
    }

    fn remark(&mut self, line: usize, what: &str) {
        self.remarks.push(remarked(line, what));
    }
}

fn remarked(line: usize, what: &str) -> String {
    format!("line {line}: {what}")
}

fn unknown_flag(instruction: &str, flag: &str) -> String {
    format!(
        "{instruction} has no flag --{}",
        crate::client::words::short(flag)
    )
}

fn command(told: &Instruction) -> Result<Command, String> {
    Ok(match json(&told.rest) {
        Some(words) => Command::Exec(words),
        None if told.rest.starts_with("--") => {
            let flag = told.rest.split_whitespace().next().unwrap_or_default();
            return Err(unknown_flag(&told.name, flag.trim_start_matches('-')));
        }
        None => Command::Shell(told.rest.clone()),
    })
}

/// The flags at the beginning, `--name` or `--name=value`, and what follows them.
fn flags(mut rest: &str) -> (Vec<(&str, Option<&str>)>, &str) {
    let mut flags = Vec::new();
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        rest = after.trim_start();
        if flag.is_empty() {
            break;
        }
        flags.push(
            flag.split_once('=')
                .map_or((flag, None), |(name, value)| (name, Some(value))),
        );
    }
    (flags, rest)
}

/// Whether a command runs without a mount as with it, if slower.
fn mount_is_nothing(mount: &str) -> bool {
    mount
        .split(',')
        .any(|part| matches!(part.trim(), "type=cache" | "type=tmpfs"))
}

fn permissions(text: &str) -> Result<u32, String> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|_| is_octal)
        .ok_or_else(|| {
            format!(
                "'{}' are not octal permissions such as 0755",
                crate::client::words::short(text)
            )
        })
}

/// A command with its here-documents, as bash reads them.
fn with_documents(told: &Instruction, line: &str) -> Result<String, String> {
    if let ([document], Some(_)) = (&told.documents[..], whole_marker(line)) {
        // Nothing but the document: it is the script.
        let script = document.text();
        if script.starts_with("#!") {
            return Err("a here-document with an interpreter of its own is not supported: write RUN interpreter <<NAME".to_owned());
        }
        return Ok(script);
    }
    let mut command = line.to_owned();
    for document in &told.documents {
        command.push('\n');
        command.push_str(&document.content);
        command.push_str(&document.name);
    }
    Ok(command)
}

/// The marker that a line is, where it is nothing else.
fn whole_marker(line: &str) -> Option<(String, bool)> {
    if line.contains(char::is_whitespace) || line.contains(['>', '|', '&', ';']) {
        return None;
    }
    lines::marker(line)
}
