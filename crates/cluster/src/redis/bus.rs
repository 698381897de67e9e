//! What happens, as a stream that every process follows.
//!
//! `bus` is a stream of the last `KEPT_MAX` happenings: who told it (`p`, drawn by each process), the how-manieth of his it is
//! (`n`), and what happened (`h`). Subscribers in the telling process hear it at once, all others by the stream. What is told
//! twice, because its first telling was not confirmed, is known by its number.
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use model::ExecutionId;
use ports::Happening;
use ports::bus::BACKLOG_MAX;
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use tokio::sync::{broadcast, mpsc, watch};

use super::link::{Away, Link, failed, within, within_more};
use super::task::Task;

/// Happenings in the stream. Some 400 bytes each: 25 MiB. A process that is further behind has missed some.
const KEPT_MAX: usize = 65_536;
/// Happenings that wait for Redis. What comes beyond that is dropped for the other processes.
const WAITING_MAX: usize = 16_384;
/// Happenings that are told at once.
const TELL_AT_ONCE: usize = 512;
/// Happenings that are read at once.
const READ_AT_ONCE: usize = 1000;
/// How long Redis may wait for a happening.
const WAIT: Duration = Duration::from_millis(1000);
/// How long to wait after a failure.
const AGAIN: Duration = Duration::from_millis(200);
/// Between two words about dropped happenings.
const COMPLAINT_EVERY: Duration = Duration::from_secs(10);
/// Processes whose numbers are remembered; more than that come and go in no fleet within the stream.
const TELLERS_MAX: usize = 4096;
/// A happening of this size is none of ours.
const HAPPENING_BYTES_MAX: usize = 64 << 10;

pub(super) struct Bus {
    heard: broadcast::Sender<Happening>,
    waiting: mpsc::Sender<(u64, String)>,
    told: AtomicU64,
    complained: Mutex<Option<tokio::time::Instant>>,
    follows: Arc<watch::Sender<bool>>,
    _tasks: [Task; 2],
}

impl Bus {
    pub(super) fn follow(link: Link) -> Self {
        let me: Arc<str> = ExecutionId::random().to_string().into();
        let heard = broadcast::channel(BACKLOG_MAX).0;
        let (waiting, news) = mpsc::channel(WAITING_MAX);
        let teller = Teller {
            link: link.clone(),
            me: Arc::clone(&me),
            news,
        };
        let follows = Arc::new(watch::Sender::new(false));
        let follower = Follower {
            link,
            me,
            heard: heard.clone(),
            read: None,
            numbers: HashMap::new(),
            follows: Arc::clone(&follows),
        };
        Self {
            heard,
            waiting,
            told: AtomicU64::new(0),
            complained: Mutex::default(),
            follows,
            _tasks: [Task::spawn(teller.run()), Task::spawn(follower.run())],
        }
    }

    /// Waits until what happens elsewhere is heard.
    pub(super) async fn first_place(&self) {
        // The sender is in our hand.
        let _ = self.follows.subscribe().wait_for(|follows| *follows).await;
    }

    fn complain(&self) {
        metrics::counter!("atoll_bus_dropped_total").increment(1);
        let mut complained = self
            .complained
            .lock()
            .expect("nothing panics while it holds the time");
        if complained.is_none_or(|at| at.elapsed() >= COMPLAINT_EVERY) {
            *complained = Some(tokio::time::Instant::now());
            tracing::error!(
                waiting = WAITING_MAX,
                "happenings are dropped for other processes: Redis does not take them"
            );
        }
    }
}

#[async_trait]
impl ports::Bus for Bus {
    async fn publish(&self, happening: Happening) {
        let text = serde_json::to_string(&happening);
        let _ = self.heard.send(happening);
        let Ok(text) = text else { return };
        let number = self.told.fetch_add(1, Ordering::Relaxed) + 1;
        if self.waiting.try_send((number, text)).is_err() {
            self.complain();
        }
    }

    fn subscribe(&self) -> broadcast::Receiver<Happening> {
        self.heard.subscribe()
    }
}

/// Tells Redis what waits.
struct Teller {
    link: Link,
    me: Arc<str>,
    news: mpsc::Receiver<(u64, String)>,
}

impl Teller {
    async fn run(mut self) {
        let mut batch = Vec::new();
        while self.news.recv_many(&mut batch, TELL_AT_ONCE).await > 0 {
            loop {
                self.link.up().await;
                match self.tell(&batch).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::debug!(%error, waiting = self.news.len(), "Redis did not take what happened");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
            batch.clear();
        }
    }

    async fn tell(&self, batch: &[(u64, String)]) -> Result<(), Away> {
        let stream = self.link.key("bus");
        let mut tell = redis::Pipeline::with_capacity(batch.len());
        for (number, text) in batch {
            tell.cmd("XADD")
                .arg(&stream)
                .arg("MAXLEN")
                .arg("~")
                .arg(KEPT_MAX)
                .arg("*")
                .arg("p")
                .arg(&*self.me)
                .arg("n")
                .arg(number)
                .arg("h")
                .arg(text)
                .ignore();
        }
        self.link.all(&tell).await
    }
}

/// What was read of the stream.
#[derive(Clone)]
struct Span {
    /// The entry after which this process began to listen.
    from: String,
    /// The last entry that was read.
    to: String,
}

/// Hears what others tell.
struct Follower {
    link: Link,
    me: Arc<str>,
    heard: broadcast::Sender<Happening>,
    /// `None` before the first look.
    read: Option<Span>,
    /// The last number of each teller.
    numbers: HashMap<String, u64>,
    follows: Arc<watch::Sender<bool>>,
}

impl Follower {
    async fn run(mut self) {
        loop {
            self.link.up().await;
            if let Err(error) = self.follow().await {
                tracing::debug!(%error, "what happens elsewhere is not heard at present");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn follow(&mut self) -> Result<(), Away> {
        let mut line = self.link.own().await?;
        let newest = self.newest(&mut line).await?;
        let mut read = match self.read.take() {
            Some(read) => self.go_on(read, &newest),
            None => self.begin(newest),
        };
        self.follows.send_replace(true);
        loop {
            self.read = Some(read.clone());
            let mut ask = redis::cmd("XREAD");
            ask.arg("COUNT")
                .arg(READ_AT_ONCE)
                .arg("BLOCK")
                .arg(u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX))
                .arg("STREAMS")
                .arg(self.link.key("bus"))
                .arg(&read.to);
            let said: RedisResult<StreamReadReply> = within_more(WAIT, ask.query_async(&mut line)).await;
            let said = said.map_err(|error| failed(&error))?;
            let entries: Vec<_> = said.keys.into_iter().flat_map(|stream| stream.ids).collect();
            if entries.is_empty() {
                let newest = self.newest(&mut line).await?;
                read = self.go_on(read, &newest);
            }
            for entry in entries {
                self.hear(&entry);
                read.to = entry.id;
            }
        }
    }

    /// Begins after the newest entry, which is heard no more.
    fn begin(&mut self, newest: StreamId) -> Span {
        if let Some((teller, number)) = self.unheard(&newest) {
            self.numbers.insert(teller, number);
        }
        Span {
            from: newest.id.clone(),
            to: newest.id,
        }
    }

    /// Goes on where it stood, or, in a stream that is another since Redis lost its data, where it began: its entries may have
    /// places that were read before, where the clock is behind, or all is within a millisecond. What was heard is known by its number.
    fn go_on(&self, read: Span, newest: &StreamId) -> Span {
        let (stood, last) = (place(&read.to), place(&newest.id));
        if stood < last || (stood == last && self.unheard(newest).is_none()) {
            return read;
        }
        let from = if place(&read.from) <= last {
            read.from
        } else {
            newest.id.clone()
        };
        Span {
            to: from.clone(),
            from,
        }
    }

    /// The newest entry; one without content, at the stream's beginning, where there is none.
    async fn newest(&self, line: &mut MultiplexedConnection) -> Result<StreamId, Away> {
        let mut ask = redis::cmd("XREVRANGE");
        ask.arg(self.link.key("bus"))
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1);
        let last: RedisResult<StreamRangeReply> = within(ask.query_async(line)).await;
        let last = last.map_err(|error| failed(&error))?;
        Ok(last.ids.into_iter().next().unwrap_or_else(|| StreamId {
            id: "0-0".to_owned(),
            ..StreamId::default()
        }))
    }

    /// Who told it, and its number, unless it is this process's own or was heard.
    fn unheard(&self, entry: &StreamId) -> Option<(String, u64)> {
        let teller = entry.get::<String>("p").filter(|teller| **teller != *self.me)?;
        let number = entry.get::<u64>("n")?;
        let last = self.numbers.get(&teller);
        last.is_none_or(|last| *last < number).then_some((teller, number))
    }

    fn hear(&mut self, entry: &StreamId) {
        let Some((teller, number)) = self.unheard(entry) else {
            return;
        };
        if self.numbers.len() >= TELLERS_MAX && !self.numbers.contains_key(&teller) {
            self.numbers.clear();
        }
        let missed = self.numbers.get(&teller).map_or(0, |last| number - last - 1);
        if missed > 0 {
            metrics::counter!("atoll_bus_missed_total").increment(missed);
            tracing::warn!(missed, teller, "happenings of another process were missed");
        }
        self.numbers.insert(teller, number);
        let text = entry
            .get::<String>("h")
            .filter(|text| text.len() <= HAPPENING_BYTES_MAX);
        match text.map(|text| serde_json::from_str(&text)) {
            Some(Ok(happening)) => {
                let _ = self.heard.send(happening);
            }
            _ => tracing::warn!(entry = entry.id, "something on the bus is no happening"),
        }
    }
}

/// The place of an entry in its stream.
fn place(id: &str) -> (u64, u64) {
    let (time, count) = id.split_once('-').unwrap_or((id, "0"));
    (time.parse().unwrap_or(0), count.parse().unwrap_or(0))
}
