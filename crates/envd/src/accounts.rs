//! USER steps of a build (contract 4.2): an account that is there afterwards, with or without the programs that images
//! bring for that.
//!
//! ```text
//! ensure ──▶ name      what a name may be          ┐
//!        ├─▶ database  lines of the files below /etc├ pure
//!        ├─▶ sudoers   that somebody may be anybody ┘
//!        └─▶ home      its directory, as /etc/skel has it
//! ```
mod database;
mod home;
mod name;
mod sudoers;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use http::StatusCode;
use wire::host_calls::UserMade;

use self::database::{Account, Numbers};
use crate::access::Refusal;
use crate::system_file;

/// The shell of whom we make.
const SHELL: &str = "/bin/bash";
/// Groups whose members may be anybody in one distribution or another.
const ADMINS: [&str; 2] = ["sudo", "wheel"];

/// The accounts below a root.
pub(crate) struct Accounts(PathBuf);

/// Why somebody is not there.
#[derive(Debug)]
pub(crate) enum AccountError {
    /// Not a name that an account can have.
    Name(String),
    /// A number, of nobody.
    Nobody(String),
    /// All numbers are taken.
    NoNumber,
    /// A file that is not text: an edit would break it.
    NotText(String),
    /// The disk.
    File { path: String, error: io::Error },
}

impl fmt::Display for AccountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AccountError::Name(name) => write!(
                f,
                "'{name}' is no name of a user: up to 32 letters, digits, '_', '.' and '-', not '-' first, not digits only"
            ),
            AccountError::Nobody(number) => write!(f, "no user has the number {number}: name one"),
            AccountError::NoNumber => write!(f, "no number is left for another user"),
            AccountError::NotText(path) => {
                write!(
                    f,
                    "'{path}' is no file of text of less than a megabyte: no user can be added to it"
                )
            }
            AccountError::File { path, error } => write!(f, "the user cannot be made: '{path}': {error}"),
        }
    }
}

impl AccountError {
    pub(crate) fn refusal(&self) -> Refusal {
        let status = match self {
            AccountError::File { error, .. } => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
                // Something else that is in place of a file of the system's.
                io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                    StatusCode::BAD_REQUEST
                }
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
            _ => StatusCode::BAD_REQUEST,
        };
        Refusal::new(status, self.to_string())
    }
}

impl Accounts {
    /// Those of the machine.
    pub(crate) fn of_machine() -> Self {
        Self(PathBuf::from("/"))
    }

    /// Makes sure that somebody is there, and with `sudo` that it may be anybody. Whoever is there stays as it is. Blocks.
    pub(crate) fn ensure(&self, name: &str, sudo: bool) -> Result<UserMade, AccountError> {
        let passwd = self
            .read("etc/passwd")?
            .unwrap_or_else(|| database::ROOT_ACCOUNT.to_owned());
        let (account, is_new) = match database::find(&passwd, name) {
            Some(account) => (account, false),
            None => (self.add(name, &passwd)?, true),
        };
        if sudo && account.uid != 0 {
            self.allow(&account.name)?;
        }
        let Account { name, uid, gid, home } = account;
        Ok(UserMade {
            name,
            uid,
            gid,
            home,
            is_new,
        })
    }

    fn add(&self, name: &str, passwd: &str) -> Result<Account, AccountError> {
        if !name.is_empty() && name.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(AccountError::Nobody(name.to_owned()));
        }
        if !name::is_name(name) {
            return Err(AccountError::Name(name.to_owned()));
        }
        let group = self
            .read("etc/group")?
            .unwrap_or_else(|| database::ROOT_GROUP.to_owned());
        let Numbers { uid, gid } = database::numbers(passwd, &group, name).ok_or(AccountError::NoNumber)?;
        let account = Account {
            name: name.to_owned(),
            uid,
            gid,
            home: format!("/home/{name}"),
        };
        // The line in passwd is the last: before it nobody is there, and whatever else is there is found again.
        if !database::has(&group, name) {
            self.write(
                "etc/group",
                &database::with_line(&group, &format!("{name}:x:{gid}:")),
                0o644,
            )?;
        }
        let secrets = [
            ("etc/gshadow", format!("{name}:!::")),
            // A password that nothing matches (shadow(5)), and that never ends.
            (
                "etc/shadow",
                format!("{name}:!:{}:0:99999:7:::", database::today()),
            ),
        ];
        for (path, line) in secrets {
            match self.read(path)? {
                Some(text) if !database::has(&text, name) => {
                    self.write(path, &database::with_line(&text, &line), 0o600)?;
                }
                _ => {}
            }
        }
        let line = format!("{name}:x:{uid}:{gid}::{}:{SHELL}", account.home);
        self.write("etc/passwd", &database::with_line(passwd, &line), 0o644)?;
        home::make(&self.0, &account).map_err(|error| AccountError::File {
            path: account.home.clone(),
            error,
        })?;
        Ok(account)
    }

    /// Lets somebody be anybody, without a password: for our own sudo and for others.
    fn allow(&self, name: &str) -> Result<(), AccountError> {
        if let Some(groups) = self.read("etc/group")?
            && let Some(group) = ADMINS.into_iter().find(|group| database::has(&groups, group))
            && let Some(text) = database::with_member(&groups, group, name)
        {
            self.write("etc/group", &text, 0o644)?;
        }
        let line = sudoers::line(name);
        let main = self.read("etc/sudoers")?;
        if let Some(main) = main.filter(|main| !sudoers::includes_directory(main)) {
            if !main.lines().any(|other| other.trim() == line) {
                self.write("etc/sudoers", &database::with_line(&main, &line), 0o440)?;
            }
            return Ok(());
        }
        let dir = self.0.join("etc/sudoers.d");
        match rustix::fs::mkdir(&dir, rustix::fs::Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => {
                return Err(AccountError::File {
                    path: "/etc/sudoers.d".to_owned(),
                    error: error.into(),
                });
            }
        }
        let path = format!("etc/sudoers.d/{}", sudoers::file_name(name));
        let text = format!("{line}\n");
        if self.read(&path)?.as_ref() != Some(&text) {
            self.write(&path, &text, 0o440)?;
        }
        Ok(())
    }

    /// The text of a file; none, where there is no file.
    fn read(&self, path: &str) -> Result<Option<String>, AccountError> {
        let place = self.0.join(path);
        match system_file::read(&place.to_string_lossy()) {
            // What is no text would not be written as it was read.
            Some(text) if text.contains(char::REPLACEMENT_CHARACTER) => Err(not_text(path)),
            Some(text) => Ok(Some(text)),
            None if is_missing(&place) => Ok(None),
            None => Err(not_text(path)),
        }
    }

    fn write(&self, path: &str, text: &str, mode: u32) -> Result<(), AccountError> {
        let place = self.0.join(path);
        system_file::replace(&place.to_string_lossy(), text, mode).map_err(|error| AccountError::File {
            path: format!("/{path}"),
            error,
        })
    }
}

fn not_text(path: &str) -> AccountError {
    AccountError::NotText(format!("/{path}"))
}

fn is_missing(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests;
