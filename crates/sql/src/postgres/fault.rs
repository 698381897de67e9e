//! Why PostgreSQL could not do it: what [`StoreError::Away`] holds.
use std::time::Duration;

use ports::StoreError;

use super::schema::SchemaError;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why PostgreSQL could not do it. What is said of a statement's effect holds for what the caller asked for as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// There is no server, it does not let us in, or it is not ready yet. Nothing was changed.
    #[error("PostgreSQL cannot be reached")]
    Unreachable(#[source] Cause),
    /// All connections were in use for too long. Nothing was changed.
    #[error(
        "no connection to PostgreSQL came free within {0:?}: too much is asked of it, or it answers too slowly"
    )]
    Busy(Duration),
    /// The connection ended under the statement. Whether it took effect is not known: repeating a compare-and-set is safe, and
    /// reading tells.
    #[error("the connection to PostgreSQL was lost; whether the statement took effect is not known")]
    Lost(#[source] Cause),
    /// No answer came, from the server or from the network. As for [`Fault::Lost`], nothing is known.
    #[error("PostgreSQL did not answer within {0:?}; whether the statement took effect is not known")]
    Silent(Duration),
    /// The server gave the statement up, for its time was over. Nothing was changed.
    #[error("PostgreSQL gave a statement up that took too long; nothing was changed")]
    Slow(#[source] Cause),
    /// Its disk, its memory or its connections are used up. Nothing was changed.
    #[error("PostgreSQL has no room left; nothing was changed")]
    Full(#[source] Cause),
    /// It is a standby, or was told to take no writes. Nothing was changed.
    #[error("PostgreSQL takes no writes: this is a standby, or a primary that was made read-only")]
    ReadOnly(#[source] Option<Cause>),
    /// Others wrote the same at the same time, each time that it was tried. Nothing was changed.
    #[error(
        "PostgreSQL undid the statement for the sake of others each time it was tried; nothing was changed"
    )]
    Undone(#[source] Cause),
    /// Its schema is not for this program.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// Whatever else it said. Nothing was changed.
    #[error("PostgreSQL refused the statement; nothing was changed")]
    Refused(#[source] Cause),
    /// What was read is not what this program writes.
    #[error("what PostgreSQL holds cannot be understood")]
    Garbled(#[source] Cause),
}

/// What to do about an error.
pub(super) enum Verdict {
    /// It is an answer.
    Answer(StoreError),
    /// The same may succeed when it is tried again, and it took no effect.
    Again(Fault),
    /// The connection is of no more use.
    Broken(Fault),
    /// Neither.
    Failed(Fault),
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        StoreError::Away(Box::new(fault))
    }
}

pub(super) fn judge(error: sqlx::Error) -> Verdict {
    let Some(code) = code(&error) else {
        return match error {
            // Nothing but what is read is decoded.
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                Verdict::Failed(Fault::Garbled(error.into()))
            }
            error => Verdict::Broken(Fault::Lost(error.into())),
        };
    };
    match code.as_str() {
        // unique_violation; foreign_key_violation: the owner of the row is not there.
        "23505" => Verdict::Answer(StoreError::Conflict),
        "23503" => Verdict::Answer(StoreError::Missing),
        // serialization_failure, deadlock_detected.
        "40001" | "40P01" => Verdict::Again(Fault::Undone(error.into())),
        // query_canceled: by its time-out, or by an administrator, who means the statement and not us.
        "57014" | "55P03" => Verdict::Failed(Fault::Slow(error.into())),
        "25006" => Verdict::Broken(Fault::ReadOnly(Some(error.into()))),
        code if code.starts_with("53") || code == "58030" => Verdict::Failed(Fault::Full(error.into())),
        // connection_exception, operator_intervention, and what ends a session: idle times-out in a transaction.
        code if code.starts_with("08") || code.starts_with("57") || code.starts_with("25P") => {
            Verdict::Broken(Fault::Lost(error.into()))
        }
        // A plan that was kept for a schema that has changed since, and internal_error, data_corrupted, system_error: the next connection may do better.
        code if matches!(code, "0A000" | "26000") || code.starts_with("XX") || code.starts_with("58") => {
            Verdict::Broken(Fault::Refused(error.into()))
        }
        _ => Verdict::Failed(Fault::Refused(error.into())),
    }
}

/// The SQLSTATE, where the server gave one.
pub(super) fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// What is read is what was written; where it is not, the store is broken.
pub(super) fn garbled(error: impl Into<Cause>) -> StoreError {
    Fault::Garbled(error.into()).into()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::fmt;

    use sqlx::error::{DatabaseError, ErrorKind};

    use super::*;

    /// An error of the server with a code.
    #[derive(Debug)]
    struct Said(&'static str);

    impl fmt::Display for Said {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "the server said {}", self.0)
        }
    }

    impl std::error::Error for Said {}

    impl DatabaseError for Said {
        fn message(&self) -> &str {
            self.0
        }
        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }
        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    fn told(code: &'static str) -> (&'static str, String) {
        let (what, fault) = match judge(sqlx::Error::Database(Box::new(Said(code)))) {
            Verdict::Answer(error) => return ("answer", error.to_string()),
            Verdict::Again(fault) => ("again", fault),
            Verdict::Broken(fault) => ("broken", fault),
            Verdict::Failed(fault) => ("failed", fault),
        };
        let cause = std::error::Error::source(&fault).map(ToString::to_string);
        let said = format!("the server said {code}");
        assert!(cause.is_some_and(|cause| cause.ends_with(&said)), "{code}");
        let error = StoreError::from(fault);
        let StoreError::Away(inside) = &error else {
            panic!("{error}");
        };
        (what, inside.to_string())
    }

    #[test]
    fn every_code_of_the_server_has_its_meaning() {
        for (codes, what, said) in [
            (&["23505"][..], "answer", "changed by somebody else"),
            (&["23503"], "answer", "not in the store"),
            (&["40001", "40P01"], "again", "undid"),
            (&["57014", "55P03"], "failed", "too long"),
            (
                &["53100", "53200", "53300", "53400", "58030"],
                "failed",
                "no room",
            ),
            (&["25006"], "broken", "takes no writes"),
            (
                &["57P01", "57P02", "57P03", "57P05", "25P03", "08006", "08P01"],
                "broken",
                "lost",
            ),
            (
                &["XX000", "XX001", "58000", "0A000", "26000"],
                "broken",
                "refused",
            ),
            (&["42P01", "22021", "54000", "23502"], "failed", "refused"),
        ] {
            for code in codes {
                let (is, text) = told(code);
                assert_eq!(is, what, "{code}");
                assert!(text.contains(said), "{code}: {text}");
            }
        }
    }

    #[test]
    fn a_connection_that_ends_leaves_the_effect_unknown() {
        let lost = sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(matches!(judge(lost), Verdict::Broken(Fault::Lost(_))));
        let odd = sqlx::Error::Protocol("what is this?".to_owned());
        assert!(matches!(judge(odd), Verdict::Broken(Fault::Lost(_))));
    }
}
