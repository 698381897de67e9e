//! What a build says: lines for its log, bounded whatever the programs in it write.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use model::BuildStep;
use ports::Level;
use ports::builds::BuildLine;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A longer line of a program's is cut: nobody reads it, and clients show lines whole.
const LINE_BYTES_MAX: usize = 4 << 10;
/// Programs in a build write so many lines at most; a full build of a distribution's kernel writes a third of it.
const LINES_MAX: usize = 100_000;
/// And so many bytes.
const BYTES_MAX: usize = 16 << 20;

/// The way to a build's log.
#[derive(Debug)]
pub(super) struct Talk {
    lines: mpsc::Sender<BuildLine>,
    /// A log that nobody takes keeps nobody from ending.
    stop: CancellationToken,
    lines_left: AtomicUsize,
    bytes_left: AtomicUsize,
}

impl Talk {
    pub(super) fn new(lines: mpsc::Sender<BuildLine>, stop: CancellationToken) -> Self {
        Self {
            lines,
            stop,
            lines_left: AtomicUsize::new(LINES_MAX),
            bytes_left: AtomicUsize::new(BYTES_MAX),
        }
    }

    /// Says something of the build's own.
    pub(super) async fn say(&self, step: BuildStep, level: Level, message: String) {
        let line = BuildLine {
            at: SystemTime::now(),
            level,
            step: Some(step),
            message: cut(&message, LINE_BYTES_MAX),
        };
        tokio::select! {
            // Whoever listened may be gone; the build goes on.
            _ = self.lines.send(line) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Says a program's line, or that no more of them are said.
    async fn pass_on(&self, step: BuildStep, level: Level, line: String) {
        let has_room = take(&self.lines_left, 1) && take(&self.bytes_left, line.len());
        if has_room {
            self.say(step, level, line).await;
        } else if self.lines_left.swap(0, Ordering::Relaxed) > 0
            || self.bytes_left.swap(0, Ordering::Relaxed) > 0
        {
            let message = format!(
                "the log is cut here: programs of a build may write {LINES_MAX} lines and {} MiB; write the rest to a file",
                BYTES_MAX >> 20
            );
            self.say(step, Level::Warn, message).await;
        }
    }
}

fn take(left: &AtomicUsize, some: usize) -> bool {
    let less = |left: usize| left.checked_sub(some);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
        .is_ok()
}

/// At most so many bytes of a text, and a word on what is missing.
pub(super) fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes_max);
    format!("{} … [{} bytes more]", &text[..end], text.len() - end)
}

/// Turns what a program writes into lines: `[builder 1/3] [stdout]: text`.
#[derive(Debug)]
pub(super) struct Printer<'a> {
    talk: &'a Talk,
    step: BuildStep,
    level: Level,
    prefix: String,
    out: Pending,
    err: Pending,
}

/// The beginning of a line whose end has not been written.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// How much of it was too long to be kept.
    missing: usize,
}

impl Pending {
    /// Adds what was written, and takes the lines that end in it.
    fn add(&mut self, written: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in written.split_inclusive(|&byte| byte == b'\n') {
            let (text, ends) = piece
                .strip_suffix(b"\n")
                .map_or((piece, false), |text| (text, true));
            let room = LINE_BYTES_MAX.saturating_sub(self.bytes.len()).min(text.len());
            self.bytes.extend_from_slice(&text[..room]);
            self.missing += text.len() - room;
            if ends {
                lines.extend(self.end());
            }
        }
        lines
    }

    /// The line as it is; `None` where there is nothing to be seen in it.
    fn end(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.bytes);
        let missing = std::mem::take(&mut self.missing);
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim();
        match missing {
            0 if text.is_empty() => None,
            0 => Some(text.to_owned()),
            _ => Some(format!("{text} … [{missing} bytes more]")),
        }
    }
}

impl<'a> Printer<'a> {
    pub(super) fn new(talk: &'a Talk, step: BuildStep, level: Level, prefix: &str) -> Self {
        Self {
            talk,
            step,
            level,
            prefix: prefix.to_owned(),
            out: Pending::default(),
            err: Pending::default(),
        }
    }

    /// Prints the lines that end in what was written to standard output.
    pub(super) async fn out(&mut self, written: &[u8]) {
        let lines = self.out.add(written);
        self.print("stdout", lines).await;
    }

    /// The same for standard error.
    pub(super) async fn err(&mut self, written: &[u8]) {
        let lines = self.err.add(written);
        self.print("stderr", lines).await;
    }

    /// Prints what was written last without the end of a line.
    pub(super) async fn end(mut self) {
        let (out, err) = (self.out.end(), self.err.end());
        self.print("stdout", out).await;
        self.print("stderr", err).await;
    }

    async fn print(&self, stream: &str, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            let line = format!("[{}] [{stream}]: {line}", self.prefix);
            self.talk.pass_on(self.step, self.level, line).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_however_they_are_written() {
        let text = "one\n\n  two  \nthr\u{fffd}ee\nfour";
        for cut in 1..text.len() {
            let mut pending = Pending::default();
            let mut lines: Vec<String> = text
                .as_bytes()
                .chunks(cut)
                .flat_map(|piece| pending.add(piece))
                .collect();
            lines.extend(pending.end());
            assert_eq!(lines, ["one", "two", "thr\u{fffd}ee", "four"], "{cut}");
        }
    }

    #[test]
    fn a_line_without_measure_is_cut_and_told_to_be() {
        let mut pending = Pending::default();
        for _ in 0..1000 {
            assert_eq!(pending.add(&[b'x'; 1024]), [""; 0]);
            assert!(pending.bytes.capacity() <= 2 * LINE_BYTES_MAX);
        }
        let lines = pending.add(b"\nnext\n");
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with(&format!(" … [{} bytes more]", 1000 * 1024 - LINE_BYTES_MAX)));
        assert_eq!(lines[1], "next");
    }

    #[test]
    fn a_text_is_cut_between_letters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("aä", 2), "a … [2 bytes more]");
    }

    #[tokio::test]
    async fn a_log_without_measure_ends_with_one_word_about_it() {
        let (sender, mut lines) = mpsc::channel(LINES_MAX + 10);
        let talk = Talk::new(sender, CancellationToken::new());
        let mut printer = Printer::new(&talk, BuildStep::Step(1), Level::Info, "builder 1/1");
        for _ in 0..LINES_MAX + 5 {
            printer.out(b"x\n").await;
        }
        talk.say(BuildStep::Step(1), Level::Info, "and on".to_owned())
            .await;
        let said: Vec<BuildLine> = std::iter::from_fn(|| lines.try_recv().ok()).collect();
        assert_eq!(said.len(), LINES_MAX + 2);
        assert_eq!(said[LINES_MAX].level, Level::Warn);
        assert_eq!(said[LINES_MAX + 1].message, "and on");
    }
}
