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

impl Lifecycle {
    /// The same with or without a pause at the end of its time. What such a pause keeps stays as it was meant: memory
    /// too, where nothing was said of it. What traffic does stays as it was.
    #[must_use]
    pub fn with_auto_pause(self, auto_pause: bool) -> Self {
        let on_timeout = match self.on_timeout {
            _ if !auto_pause => OnTimeout::Kill,
            OnTimeout::Kill => OnTimeout::Pause(PauseMode::Full),
            pause @ OnTimeout::Pause(_) => pause,
        };
        Self { on_timeout, ..self }
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            on_timeout: OnTimeout::Kill,
            auto_resume: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_auto_pause_that_is_set_again_keeps_its_mode_and_what_traffic_does() {
        let (full, disk) = (
            OnTimeout::Pause(PauseMode::Full),
            OnTimeout::Pause(PauseMode::Filesystem),
        );
        for (before, auto_pause, after) in [
            (OnTimeout::Kill, true, full),
            (full, true, full),
            (disk, true, disk),
            (disk, false, OnTimeout::Kill),
            (OnTimeout::Kill, false, OnTimeout::Kill),
        ] {
            for auto_resume in [false, true] {
                let lifecycle = |on_timeout| Lifecycle {
                    on_timeout,
                    auto_resume,
                };
                assert_eq!(lifecycle(before).with_auto_pause(auto_pause), lifecycle(after));
            }
        }
    }
}
