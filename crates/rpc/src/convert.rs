//! The model's words as messages, and back. What comes from a peer is checked here, and nowhere else.
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use model::{BuildId, ExecutionId, Kind, Memory, PauseMode, SandboxId};
use ports::Level;
use ports::node::PauseOutcome;
use ports::volumes::FileKind;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::node as proto;

/// A message that says what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a message of a peer has no proper {0}")]
pub struct Malformed(pub &'static str);

pub(crate) type Read<T> = Result<T, Malformed>;

/// An id, or whatever else is read from its text.
pub(crate) fn parsed<T: FromStr>(text: &str, what: &'static str) -> Read<T> {
    text.parse().map_err(|_| Malformed(what))
}

/// What is JSON on the way.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("what is kept in journals is written as JSON")
}

pub(crate) fn from_json<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Read<T> {
    serde_json::from_slice(bytes).map_err(|_| Malformed(what))
}

/// What is JSON on the way, and may not be there.
pub(crate) fn optional_json<T: Serialize>(value: Option<&T>) -> Vec<u8> {
    value.map(json).unwrap_or_default()
}

pub(crate) fn from_optional_json<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Read<Option<T>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    from_json(bytes, what).map(Some)
}

/// An enumeration that is a word in JSON.
pub(crate) fn text<T: Serialize>(value: &T) -> String {
    String::from_utf8(json(value)).expect("JSON is UTF-8")
}

pub(crate) fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanos| -nanos),
    }
}

pub(crate) fn time(nanos: i64) -> SystemTime {
    let span = Duration::from_nanos(nanos.unsigned_abs());
    let shifted = if nanos < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(span)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(span)
    };
    shifted.unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(crate) fn span_nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn execution(sandbox: SandboxId, execution: ExecutionId) -> proto::Execution {
    proto::Execution {
        sandbox: sandbox.to_string(),
        execution: execution.to_string(),
        ..Default::default()
    }
}

pub(crate) fn from_execution(at: Option<&proto::Execution>) -> Read<(SandboxId, ExecutionId)> {
    let at = at.ok_or(Malformed("execution"))?;
    Ok((
        parsed(&at.sandbox, "sandbox id")?,
        parsed(&at.execution, "execution id")?,
    ))
}

pub(crate) fn build_list<'a>(builds: impl IntoIterator<Item = &'a BuildId>) -> proto::BuildList {
    proto::BuildList {
        builds: builds.into_iter().map(BuildId::to_string).collect(),
        ..Default::default()
    }
}

pub(crate) fn from_build_list(list: &proto::BuildList) -> Read<Vec<BuildId>> {
    let builds = list.builds.iter();
    builds.map(|build| parsed(build, "build id")).collect()
}

pub(crate) fn pause_mode(mode: PauseMode) -> proto::PauseMode {
    match mode {
        PauseMode::Full => proto::PauseMode::PAUSE_MODE_FULL,
        PauseMode::Filesystem => proto::PauseMode::PAUSE_MODE_FILESYSTEM,
    }
}

pub(crate) fn from_pause_mode(mode: buffa::EnumValue<proto::PauseMode>) -> Read<PauseMode> {
    match mode.as_known() {
        Some(proto::PauseMode::PAUSE_MODE_FULL) => Ok(PauseMode::Full),
        Some(proto::PauseMode::PAUSE_MODE_FILESYSTEM) => Ok(PauseMode::Filesystem),
        _ => Err(Malformed("mode of a pause")),
    }
}

pub(crate) fn memory(memory: Memory) -> String {
    text(&memory)
}

/// How safe memory is that a newer peer names in a word of its own is not known: as safe as the least.
pub(crate) fn from_memory(memory: &str) -> Memory {
    serde_json::from_str(memory).unwrap_or(Memory::Volatile)
}

pub(crate) fn pause_outcome(outcome: &PauseOutcome) -> proto::PauseOutcome {
    proto::PauseOutcome {
        mode: pause_mode(outcome.mode).into(),
        memory: memory(outcome.memory),
        envd_unresponsive: outcome.envd_unresponsive,
        ..Default::default()
    }
}

pub(crate) fn from_pause_outcome(outcome: &proto::PauseOutcome) -> Read<PauseOutcome> {
    Ok(PauseOutcome {
        mode: from_pause_mode(outcome.mode)?,
        memory: from_memory(&outcome.memory),
        envd_unresponsive: outcome.envd_unresponsive,
    })
}

pub(crate) fn level(level: Level) -> proto::Level {
    match level {
        Level::Debug => proto::Level::LEVEL_DEBUG,
        Level::Info => proto::Level::LEVEL_INFO,
        Level::Warn => proto::Level::LEVEL_WARN,
        Level::Error => proto::Level::LEVEL_ERROR,
    }
}

/// A level that is not known is one that says something ordinary.
pub(crate) fn from_level(level: buffa::EnumValue<proto::Level>) -> Level {
    match level.as_known() {
        Some(proto::Level::LEVEL_DEBUG) => Level::Debug,
        Some(proto::Level::LEVEL_WARN) => Level::Warn,
        Some(proto::Level::LEVEL_ERROR) => Level::Error,
        _ => Level::Info,
    }
}

pub(crate) fn file_kind(kind: FileKind) -> proto::FileKind {
    match kind {
        FileKind::File => proto::FileKind::FILE_KIND_FILE,
        FileKind::Directory => proto::FileKind::FILE_KIND_DIRECTORY,
        FileKind::Symlink => proto::FileKind::FILE_KIND_SYMLINK,
        FileKind::Other => proto::FileKind::FILE_KIND_OTHER,
    }
}

pub(crate) fn from_file_kind(kind: buffa::EnumValue<proto::FileKind>) -> FileKind {
    match kind.as_known() {
        Some(proto::FileKind::FILE_KIND_FILE) => FileKind::File,
        Some(proto::FileKind::FILE_KIND_DIRECTORY) => FileKind::Directory,
        Some(proto::FileKind::FILE_KIND_SYMLINK) => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

pub(crate) fn kind(kind: Kind) -> proto::Kind {
    match kind {
        Kind::Invalid => proto::Kind::KIND_INVALID,
        Kind::Unauthenticated => proto::Kind::KIND_UNAUTHENTICATED,
        Kind::Forbidden => proto::Kind::KIND_FORBIDDEN,
        Kind::NotFound => proto::Kind::KIND_NOT_FOUND,
        Kind::Conflict => proto::Kind::KIND_CONFLICT,
        Kind::Exhausted => proto::Kind::KIND_EXHAUSTED,
        Kind::Unsupported => proto::Kind::KIND_UNSUPPORTED,
        Kind::Unavailable => proto::Kind::KIND_UNAVAILABLE,
        Kind::Timeout => proto::Kind::KIND_TIMEOUT,
        Kind::Internal => proto::Kind::KIND_INTERNAL,
    }
}

pub(crate) fn from_kind(kind: buffa::EnumValue<proto::Kind>) -> Kind {
    match kind.as_known() {
        Some(proto::Kind::KIND_INVALID) => Kind::Invalid,
        Some(proto::Kind::KIND_UNAUTHENTICATED) => Kind::Unauthenticated,
        Some(proto::Kind::KIND_FORBIDDEN) => Kind::Forbidden,
        Some(proto::Kind::KIND_NOT_FOUND) => Kind::NotFound,
        Some(proto::Kind::KIND_CONFLICT) => Kind::Conflict,
        Some(proto::Kind::KIND_EXHAUSTED) => Kind::Exhausted,
        Some(proto::Kind::KIND_UNSUPPORTED) => Kind::Unsupported,
        Some(proto::Kind::KIND_UNAVAILABLE) => Kind::Unavailable,
        Some(proto::Kind::KIND_TIMEOUT) => Kind::Timeout,
        Some(proto::Kind::KIND_INTERNAL | proto::Kind::KIND_UNSPECIFIED) | None => Kind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_come_back_to_the_nanosecond(at in any::<i64>()) {
            prop_assert_eq!(nanos(time(at)), at);
        }
    }

    #[test]
    fn every_kind_comes_back() {
        for each in Kind::ALL {
            assert_eq!(from_kind(kind(each).into()), each);
        }
        assert_eq!(from_kind(buffa::EnumValue::from(4711)), Kind::Internal);
    }

    #[test]
    fn memory_of_a_word_that_is_not_known_is_not_called_safe() {
        for each in [Memory::None, Memory::Volatile, Memory::Durable] {
            assert_eq!(from_memory(&memory(each)), each);
        }
        assert_eq!(from_memory("\"engraved\""), Memory::Volatile);
    }
}
