//! What a template is built from, out of a client's words (contract 4.2).
use model::TemplateRef;
use model::recipe::{self, Action, Base, Recipe, RegistryCredentials, Step};
use wire::rest::{Registry, StartBuild, TemplateStep};

use crate::body::shown;
use crate::error::ApiError;
use crate::uploads;

/// What a build starts from whose request does not say.
const DEFAULT_IMAGE: &str = "e2bdev/base";
/// Names of images are shorter (a registry's host, 255 characters of a path, a tag and a digest).
const IMAGE_BYTES_MAX: usize = 1_024;
/// The longest start or ready command: the kernel passes no longer argument to a program.
const COMMAND_BYTES_MAX: usize = 128 << 10;
/// Credentials of a registry: a service account's key file is the longest.
const CREDENTIAL_BYTES_MAX: usize = 64 << 10;
/// Permission bits of a file, with those for set-uid, set-gid and sticky.
const MODE_MAX: u32 = 0o7777;

/// The recipe of a build, or a 400 that names what is wrong with it.
pub(crate) fn recipe(body: StartBuild) -> Result<Recipe, ApiError> {
    let steps = body.steps.unwrap_or_default();
    let steps: Result<Vec<Step>, ApiError> = (1..)
        .zip(steps)
        .map(|(number, told)| step(number, told))
        .collect();
    let recipe = Recipe {
        from: base(body.from_image, body.from_template, body.from_image_registry)?,
        steps: steps?,
        start: command("startCmd", body.start_cmd)?,
        ready: command("readyCmd", body.ready_cmd)?,
        force: body.force.unwrap_or(false),
    };
    // The base makes no difference to whether it can be carried out.
    recipe::plan(recipe::Key::of_image(""), &recipe).map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(recipe)
}

fn base(
    image: Option<String>,
    template: Option<String>,
    registry: Option<Registry>,
) -> Result<Base, ApiError> {
    let (image, template) = (given(image), given(template));
    let template = match (image, template) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                "'fromImage' and 'fromTemplate' exclude each other: give one of them",
            ));
        }
        (image, None) => return from_image(image.unwrap_or_else(|| DEFAULT_IMAGE.to_owned()), registry),
        (None, Some(template)) => template,
    };
    if registry.is_some() {
        return Err(ApiError::invalid(
            "'fromImageRegistry' goes with 'fromImage', and not with 'fromTemplate'",
        ));
    }
    template
        .parse()
        .map(Base::Template)
        .map_err(|error: model::TemplateRefError| ApiError::invalid(format!("'fromTemplate': {error}")))
}

fn from_image(reference: String, registry: Option<Registry>) -> Result<Base, ApiError> {
    if reference.len() > IMAGE_BYTES_MAX || !reference.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ApiError::invalid(format!(
            "'fromImage': '{}' is not [registry/]name[:tag][@digest]",
            shown(&reference)
        )));
    }
    Ok(Base::Image {
        reference,
        credentials: registry.map(credentials).transpose()?,
    })
}

fn credentials(registry: Registry) -> Result<RegistryCredentials, ApiError> {
    let texts: &[(&str, &str)] = match &registry {
        Registry::Basic { username, password } => &[("username", username), ("password", password.expose())],
        Registry::Aws {
            access_key_id,
            secret_access_key,
            region,
        } => &[
            ("awsAccessKeyId", access_key_id),
            ("awsSecretAccessKey", secret_access_key.expose()),
            ("awsRegion", region),
        ],
        Registry::Gcp { service_account_json } => &[("serviceAccountJson", service_account_json.expose())],
    };
    let wrong = |text: &str| text.is_empty() || text.len() > CREDENTIAL_BYTES_MAX || text.contains('\0');
    if let Some((name, _)) = texts.iter().find(|(_, text)| wrong(text)) {
        return Err(ApiError::invalid(format!(
            "'fromImageRegistry.{name}' must be 1..={CREDENTIAL_BYTES_MAX} bytes without NUL"
        )));
    }
    Ok(match registry {
        Registry::Basic { username, password } => RegistryCredentials::Basic { username, password },
        Registry::Aws {
            access_key_id,
            secret_access_key,
            region,
        } => RegistryCredentials::Aws {
            access_key_id,
            secret_access_key,
            region,
        },
        Registry::Gcp { service_account_json } => RegistryCredentials::Gcp {
            service_account: service_account_json,
        },
    })
}

fn command(name: &str, text: Option<String>) -> Result<Option<String>, ApiError> {
    let text = given(text);
    if text
        .as_ref()
        .is_some_and(|text| text.len() > COMMAND_BYTES_MAX || text.contains('\0'))
    {
        return Err(ApiError::invalid(format!(
            "'{name}' must be at most {COMMAND_BYTES_MAX} bytes without NUL"
        )));
    }
    Ok(text)
}

/// An empty text is none.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

fn step(number: u32, told: TemplateStep) -> Result<Step, ApiError> {
    let kind = told.kind.to_ascii_uppercase();
    let args = told.args.unwrap_or_default();
    let action = match kind.as_str() {
        "COPY" | "ADD" => copy(args, told.files_hash),
        "RUN" => run(args),
        "ENV" | "ARG" => env(args),
        "WORKDIR" => workdir(args),
        "USER" => user(args),
        _ => Err("there is no such step: it must be COPY, ADD, RUN, ENV, ARG, WORKDIR or USER".to_owned()),
    };
    let force = told.force.unwrap_or(false);
    action
        .map(|action| Step { action, force })
        .map_err(|wrong| ApiError::invalid(format!("step {number} ({}): {wrong}", shown(&kind))))
}

/// What is wrong with a step.
type Parsed = Result<Action, String>;

fn copy(args: Vec<String>, files: Option<String>) -> Parsed {
    let mut args = args.into_iter();
    let (Some(source), Some(destination)) = (given(args.next()), given(args.next())) else {
        return Err("its arguments must be a source and a destination".to_owned());
    };
    let (owner, mode) = (given(args.next()), given(args.next()));
    if args.next().is_some() {
        return Err("its arguments must be source, destination, owner and mode".to_owned());
    }
    let files = files
        .filter(|files| uploads::is_hash(files))
        .ok_or("'filesHash' must be the SHA-256 of its files, 64 lower-case hexadecimal digits")?;
    Ok(Action::Copy {
        source,
        destination,
        owner: owner.map(owner_of).transpose()?,
        mode: mode.map(mode_of).transpose()?,
        files,
    })
}

fn owner_of(text: String) -> Result<String, String> {
    let (user, group) = text.split_once(':').unwrap_or((&text, "group"));
    let word = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b':' && b != b'/')
    };
    if word(user) && word(group) {
        Ok(text)
    } else {
        Err(format!("'{}' is not an owner, user[:group]", shown(&text)))
    }
}

fn mode_of(text: String) -> Result<u32, String> {
    let digits = text.trim_start_matches("0o");
    let octal = !digits.is_empty() && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(digits, 8)
        .ok()
        .filter(|mode| octal && *mode <= MODE_MAX);
    mode.ok_or_else(|| format!("'{}' are not octal permissions up to 7777", shown(&text)))
}

fn run(args: Vec<String>) -> Parsed {
    let mut args = args.into_iter();
    let Some(command) = given(args.next()) else {
        return Err("its argument must be a command".to_owned());
    };
    let user = given(args.next());
    if args.next().is_some() {
        return Err("its arguments must be a command and a user".to_owned());
    }
    Ok(Action::Run {
        command,
        user: user.map(name_of).transpose()?,
    })
}

fn env(args: Vec<String>) -> Parsed {
    if args.is_empty() || !args.len().is_multiple_of(2) {
        return Err("its arguments must be pairs of name and value".to_owned());
    }
    let mut pairs = Vec::with_capacity(args.len() / 2);
    let mut args = args.into_iter();
    while let (Some(name), Some(value)) = (args.next(), args.next()) {
        if name.is_empty() || name.contains(['=', '\0']) || name.contains(char::is_whitespace) {
            return Err(format!("'{}' is no name of a variable", shown(&name)));
        }
        pairs.push((name, value));
    }
    Ok(Action::Env(pairs))
}

fn workdir(args: Vec<String>) -> Parsed {
    match <[String; 1]>::try_from(args) {
        Ok([path]) if !path.trim().is_empty() => Ok(Action::Workdir(path)),
        _ => Err("its argument must be a path".to_owned()),
    }
}

fn user(args: Vec<String>) -> Parsed {
    let mut args = args.into_iter();
    let Some(name) = given(args.next()) else {
        return Err("its argument must be a user".to_owned());
    };
    let sudo = given(args.next());
    if args.next().is_some() || !matches!(sudo.as_deref(), None | Some("true" | "false")) {
        return Err("its arguments must be a user, and 'true' where it may use sudo".to_owned());
    }
    Ok(Action::User {
        name: name_of(name)?,
        sudo: sudo.as_deref() == Some("true"),
    })
}

fn name_of(text: String) -> Result<String, String> {
    // As useradd has it, and numbers.
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'$');
    if !text.starts_with('-') && text.len() <= 256 && text.bytes().all(plain) {
        Ok(text)
    } else {
        Err(format!("'{}' is no name of a user", shown(&text)))
    }
}

/// A template's name, or a 400 that says so.
pub(crate) fn name(text: &str) -> Result<TemplateRef, ApiError> {
    text.parse().map_err(|_| {
        ApiError::invalid(format!(
            "Invalid name: '{}' is not [namespace/]name[:tag]",
            shown(text)
        ))
    })
}

/// A tag as it is stored, or a 400 that says why it is none.
pub(crate) fn tag(text: &str) -> Result<String, ApiError> {
    let lower = text.trim().to_ascii_lowercase();
    let wrong = |why: &str| ApiError::invalid(format!("Invalid tag: '{}' {why}", shown(text)));
    if lower.parse::<model::BuildId>().is_ok() {
        return Err(wrong("is a UUID, which names builds"));
    }
    let parsed: Result<TemplateRef, _> = format!("x:{lower}").parse();
    parsed.map_err(|_| wrong("is not made of a-z, 0-9, '-', '_' and '.'"))?;
    Ok(lower)
}

#[cfg(test)]
mod tests;
