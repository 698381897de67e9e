//! Typed ids: mixing two kinds is a compile error, and a parsed id is a valid id.
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

use rand::Rng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0}")]
pub struct IdError(pub &'static str);

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// Characters drawn for a short id: 36^20 ≈ 2^103 ids, so drawing one at random never meets another.
const SHORT_LEN: usize = 20;

fn draw() -> [u8; SHORT_LEN] {
    let mut rng = rand::rng();
    std::array::from_fn(|_| ALPHABET[rng.random_range(0..ALPHABET.len())])
}

macro_rules! short_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; SHORT_LEN + $prefix.len()]);

        impl $name {
            /// Draws a new id at random.
            #[must_use]
            pub fn random() -> Self {
                let mut bytes = [0; SHORT_LEN + $prefix.len()];
                bytes[..$prefix.len()].copy_from_slice($prefix.as_bytes());
                bytes[$prefix.len()..].copy_from_slice(&draw());
                Self(bytes)
            }

            /// The wire form.
            #[must_use]
            pub fn as_str(&self) -> &str {
                std::str::from_utf8(&self.0).expect("ids hold ASCII only, by construction")
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let bytes: [u8; SHORT_LEN + $prefix.len()] = text.as_bytes().try_into().map_err(|_| IdError($what))?;
                let ok = text.starts_with($prefix) && bytes.iter().all(|b| ALPHABET.contains(b));
                if ok { Ok(Self(bytes)) } else { Err(IdError($what)) }
            }
        }
        text_id!($name);
    };
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Draws a new id at random (UUID version 4).
            #[must_use]
            pub fn random() -> Self { Self(Uuid::new_v4()) }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| IdError($what))
            }
        }
        impl $name {
            /// The wire form: lower-case, hyphenated.
            #[must_use]
            pub fn as_str(&self) -> String { self.0.to_string() }
        }
        text_id!($name);
    };
}

macro_rules! text_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str().as_ref())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str().as_ref())
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

short_id! {
    /// A sandbox: `i` and twenty of `[a-z0-9]` (contract 1.3). Stable for its whole life, over pause and resume.
    SandboxId, "sandbox id", "i"
}

impl SandboxId {
    /// What its machines are known by inside (machine-id(5)), where that is not drawn at random: 32 lower-case hexadecimal
    /// digits, the same for the sandbox's whole life.
    #[must_use]
    pub fn machine_id(&self) -> String {
        let digest = Sha256::digest(self.as_str());
        digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

short_id! {
    /// A template: twenty of `[a-z0-9]` (contract 1.3).
    TemplateId, "template id", ""
}
uuid_id! {
    /// One built state of a template, or one snapshot: what a sandbox starts from.
    BuildId, "build id"
}
uuid_id! {
    /// One incarnation of a sandbox on one node. Every start and every resume mints a new one.
    ExecutionId, "execution id"
}
uuid_id! {
    /// A team: the owner of keys, templates and sandboxes.
    TeamId, "team id"
}
uuid_id! {
    /// A volume.
    VolumeId, "volume id"
}
uuid_id! {
    /// An API key or access token, by name; never the key itself.
    KeyId, "key id"
}
uuid_id! {
    /// A person who owns an access token.
    UserId, "user id"
}
uuid_id! {
    /// A machine that runs sandboxes. Kept in its data directory, so it survives restarts.
    NodeId, "node id"
}
uuid_id! {
    /// One life of a process of the control plane: drawn at its start.
    ProcessId, "process id"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_id_parses_back() {
        let id = SandboxId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        let id = TemplateId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        let id = ExecutionId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn a_foreign_text_is_not_an_id() {
        for text in [
            "",
            "i",
            "I23456789012345678901",
            "i2345678901234567890-",
            "x23456789012345678901",
            "i234567890123456789012",
        ] {
            assert_eq!(text.parse::<SandboxId>(), Err(IdError("sandbox id")), "{text}");
        }
    }

    #[test]
    fn ids_travel_through_json_as_text() {
        let id = SandboxId::random();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<SandboxId>(&json).unwrap(), id);
    }
}
