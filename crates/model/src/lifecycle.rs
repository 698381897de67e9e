use serde::{Deserialize, Serialize};

/// How much of a sandbox a pause keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PauseMode {
    /// Memory and disk: processes go on where they were.
    Full,
    /// The disk only: processes end, and a resume boots anew.
    Filesystem,
}

/// What becomes of a sandbox when its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It is killed.
    Kill,
    /// It is paused.
    Pause(PauseMode),
}

/// What a sandbox does without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// At the end of its time.
    pub on_timeout: OnTimeout,
    /// Whether traffic wakes it when it is paused. Never set for a filesystem-only auto-pause (contract 3.4).
    pub auto_resume: bool,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            on_timeout: OnTimeout::Kill,
            auto_resume: false,
        }
    }
}
