//! Which Firecrackers are fit to be trusted with guests.
//!
//! Below [`Version::OLDEST`] nothing is taken. Above it there is a table of what is known to be wrong with which versions, by the
//! names under which it was published. A version that is in it is refused, with the reason, unless the operator has accepted
//! each of these by its name; so is a development build, of which nobody says what is in it.
//!
//! | Name | Where it is told |
//! |---|---|
//! | CVE-2026-1386 | [record](https://www.cve.org/CVERecord?id=CVE-2026-1386), below the oldest version |
//! | CVE-2026-5747 | [bulletin 2026-015](https://aws.amazon.com/security/security-bulletins/2026-015-aws), GHSA-776c-mpj7-jm3r |
//! | CVE-2026-122192 | [record](https://www.cve.org/CVERecord?id=CVE-2026-122192), fixed in 1.16.2 |
//! | firecracker-6100, -5959 | the pull requests of these numbers, in its change log |
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version of Firecracker's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    numbers: [u32; 3],
    /// What comes after a hyphen: it is no release then.
    pre: Option<String>,
}

/// Something that is wrong with some versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// As it was published, and as it is accepted.
    pub name: &'static str,
    /// What it lets happen.
    pub what: &'static str,
    /// The first version that has it.
    pub from: [u32; 3],
    /// The first that does not.
    pub fixed_in: [u32; 3],
}

/// What is known. Ranges as published; of a version between two branches what was published is taken by its word.
const FAULTS: [Fault; 4] = [
    Fault {
        name: "CVE-2026-5747",
        what: "a guest's root can write beyond virtio queues on the PCI transport, and may reach the host",
        from: [1, 13, 0],
        fixed_in: [1, 15, 1],
    },
    Fault {
        name: "CVE-2026-122192",
        what: "a guest can reach Firecracker's memory when the host runs short while memory is given back (balloon, \
               memory hotplug)",
        from: [0, 23, 0],
        fixed_in: [1, 16, 2],
    },
    Fault {
        name: "firecracker-5959",
        what: "its jailer follows no links to network namespaces and cgroups, so no jail can be made",
        from: [1, 16, 0],
        fixed_in: [1, 16, 1],
    },
    Fault {
        name: DEAF,
        what: "nobody reaches a machine any more that was frozen and thawed",
        from: [1, 16, 0],
        fixed_in: [1, 16, 2],
    },
];

/// The fault on which it depends whether machines may be frozen.
pub(crate) const DEAF: &str = "firecracker-6100";
/// The name by which development builds are accepted.
const DEVELOPMENT: &str = "development-build";

/// Why a Firecracker is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is older than what this was written for.
    #[error(
        "Firecracker {0} is too old: at least {oldest} is needed, and 1.16.2 is the first without known faults",
        oldest = Version::OLDEST
    )]
    Old(Version),
    /// It is known to be faulty.
    #[error(
        "Firecracker {version} is known to be faulty: {}; use at least {fixed_in}",
        told(faults)
    )]
    Faulty {
        /// Which.
        version: Version,
        /// What is wrong with it and was not accepted.
        faults: Vec<&'static Fault>,
        /// Where all of it is fixed.
        fixed_in: Version,
    },
    /// It is no release.
    #[error(
        "Firecracker {0} is a development build, of which nobody says which faults are fixed in it: use a release, or accept it \
         as {DEVELOPMENT}"
    )]
    Development(Version),
    /// It says no version.
    #[error("this is no version of Firecracker: {0:?}")]
    Unknown(String),
}

fn told(faults: &[&'static Fault]) -> String {
    let told = faults
        .iter()
        .map(|fault| format!("{} ({})", fault.name, fault.what));
    told.collect::<Vec<_>>().join(", ")
}

impl Version {
    /// The oldest that is taken: CVE-2026-5747 is fixed in it.
    pub const OLDEST: Self = Self {
        numbers: [1, 15, 1],
        pre: None,
    };

    /// Since then a bzImage is booted as it is.
    const BOOTS_BZIMAGE: [u32; 3] = [1, 17, 0];

    /// Whether it is fit, with what the operator has accepted.
    ///
    /// # Errors
    /// Why not.
    pub fn is_fit(&self, accepted: &[String]) -> Result<(), Unfit> {
        let is_accepted = |name: &str| accepted.iter().any(|accepted| accepted == name);
        if self.numbers < Self::OLDEST.numbers {
            return Err(Unfit::Old(self.clone()));
        }
        let faults = FAULTS.iter();
        let faults = faults.filter(|fault| fault.is_in(self) && !is_accepted(fault.name));
        let faults: Vec<&Fault> = faults.collect();
        if let Some(fixed_in) = faults.iter().map(|fault| fault.fixed_in).max() {
            return Err(Unfit::Faulty {
                version: self.clone(),
                faults,
                fixed_in: Self {
                    numbers: fixed_in,
                    pre: None,
                },
            });
        }
        if self.pre.is_some() && !is_accepted(DEVELOPMENT) {
            return Err(Unfit::Development(self.clone()));
        }
        Ok(())
    }

    /// Whether it boots a bzImage as it is.
    #[must_use]
    pub fn boots_bzimage(&self) -> bool {
        self.numbers >= Self::BOOTS_BZIMAGE
    }

    /// Whether a machine that only stood is lost to its host when it goes on: `firecracker-6100`.
    #[must_use]
    pub(crate) fn is_deaf_after_standing(&self) -> bool {
        FAULTS.iter().any(|fault| fault.name == DEAF && fault.is_in(self))
    }

    /// Whether what `self` wrote down may be brought back by `here`, if its format says so too: never by an older one, which may
    /// have faults that `self` has not.
    #[must_use]
    pub fn is_at_most(&self, here: &Self) -> bool {
        // A development build comes before its release.
        (self.numbers, self.pre.is_none()) <= (here.numbers, here.pre.is_none())
    }
}

impl Fault {
    fn is_in(&self, version: &Version) -> bool {
        (self.from..self.fixed_in).contains(&version.numbers)
    }
}

impl FromStr for Version {
    type Err = Unfit;

    /// Of `1.16.2`, `v1.16.2` or `1.17.0-dev`.
    fn from_str(text: &str) -> Result<Self, Unfit> {
        let unknown = || Unfit::Unknown(text.chars().take(64).flat_map(char::escape_default).collect());
        let version = text.strip_prefix('v').unwrap_or(text);
        let (numbers, pre) = match version.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre)),
            None => (version, None),
        };
        let is_word = |word: &str| {
            let of = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
            (1..=64).contains(&word.len()) && word.bytes().all(of)
        };
        if pre.is_some_and(|pre| !is_word(pre)) {
            return Err(unknown());
        }
        let numbers: Vec<&str> = numbers.split('.').collect();
        let [major, minor, patch] = *numbers else {
            return Err(unknown());
        };
        let number = |digits: &str| match digits.bytes().all(|digit| digit.is_ascii_digit()) {
            true => digits.parse().map_err(|_| unknown()),
            false => Err(unknown()),
        };
        Ok(Self {
            numbers: [number(major)?, number(minor)?, number(patch)?],
            pre: pre.map(str::to_owned),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        match &self.pre {
            Some(pre) => write!(f, "-{pre}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for Version {
    type Error = Unfit;
    fn try_from(text: String) -> Result<Self, Unfit> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn check(text: &str, accepted: &[&str], why: Option<&str>) {
        let accepted: Vec<String> = accepted.iter().map(|&name| name.to_owned()).collect();
        let told = version(text)
            .is_fit(&accepted)
            .err()
            .map(|error| error.to_string());
        match (told, why) {
            (None, None) => {}
            (Some(told), Some(why)) => assert!(told.contains(why), "{text}: {told}"),
            (told, why) => panic!("{text}: {told:?}, not {why:?}"),
        }
    }

    #[test]
    fn what_is_known_to_be_faulty_is_refused_by_name() {
        check("1.16.2", &[], None);
        check("1.17.0", &[], None);
        check("2.0.0", &[], None);
        check("1.15.0", &[], Some("too old"));
        check("1.13.1", &["CVE-2026-5747", "CVE-2026-122192"], Some("too old"));
        check("0.9.9", &[], Some("at least 1.15.1"));
        check("1.15.1", &[], Some("CVE-2026-122192"));
        check("1.15.1", &[], Some("use at least 1.16.2"));
        check("1.16.0", &[], Some("firecracker-5959"));
        check("1.16.1", &[], Some("firecracker-6100"));
        check("1.17.0-dev", &[], Some("development build"));
    }

    #[test]
    fn what_the_operator_accepts_by_name_is_taken_and_nothing_else() {
        check("1.15.1", &["CVE-2026-122192"], None);
        check("1.16.1", &["CVE-2026-122192"], Some("firecracker-6100"));
        check("1.16.1", &["CVE-2026-122192", "firecracker-6100"], None);
        check(
            "1.16.0",
            &["CVE-2026-122192", "firecracker-6100"],
            Some("firecracker-5959"),
        );
        check("1.17.0-dev", &["development-build"], None);
        check("1.15.1", &["*"], Some("CVE-2026-122192"));
    }

    #[test]
    fn versions_are_told_apart_from_what_is_none() {
        assert_eq!(version("v1.16.2").to_string(), "1.16.2");
        assert_eq!(version("1.17.0-dev").to_string(), "1.17.0-dev");
        for text in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "1.2.x",
            "1.2.-3",
            "1.2.3-",
            "1.2.3-a b",
            "+1.2.3",
            "1.2.99999999999",
        ] {
            assert!(
                matches!(text.parse::<Version>(), Err(Unfit::Unknown(_))),
                "{text}"
            );
        }
        assert!(!version("1.16.2").boots_bzimage() && version("1.17.0-dev").boots_bzimage());
    }

    #[test]
    fn nothing_is_brought_back_by_an_older_one() {
        let order = ["1.15.1", "1.16.1", "1.16.2", "1.17.0-dev", "1.17.0"];
        for (n, older) in order.iter().enumerate() {
            for (m, newer) in order.iter().enumerate() {
                assert_eq!(
                    version(older).is_at_most(&version(newer)),
                    n <= m,
                    "{older} {newer}"
                );
            }
        }
    }
}
