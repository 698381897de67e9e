//! What is to be told to Redis and could not be at once: kept in its order, and told as soon as Redis is there.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex as Turn, Notify};

use super::link::{Away, Link};
use super::task::Task;

/// Kept at once. What comes beyond that is left to the reconcilers, who find it missing.
const KEPT_MAX: usize = 65_536;
/// Redis is there and refuses, for lack of memory perhaps: it is asked again after this long.
const AGAIN: Duration = Duration::from_millis(500);
/// How often in a row. What Redis never takes must not hold up what comes after it.
const ATTEMPTS_MAX: u32 = 20;

/// Something that can be told, once or twice.
#[async_trait]
pub(super) trait Tell: Clone + Send + Sync + 'static {
    async fn tell(&self, link: &Link) -> Result<(), Away>;
}

/// Tells in order.
pub(super) struct Teller<T> {
    inner: Arc<Inner<T>>,
    _task: Task,
}

struct Inner<T> {
    link: Link,
    what: &'static str,
    waiting: Mutex<VecDeque<T>>,
    more: Notify,
    turn: Turn<()>,
}

impl<T: Tell> Teller<T> {
    pub(super) fn new(link: Link, what: &'static str) -> Self {
        let inner = Arc::new(Inner {
            link,
            what,
            waiting: Mutex::default(),
            more: Notify::new(),
            turn: Turn::default(),
        });
        Self {
            _task: Task::spawn(Arc::clone(&inner).run()),
            inner,
        }
    }

    /// Tells it behind the caller's back.
    pub(super) fn soon(&self, news: T) {
        let mut waiting = self.inner.waiting();
        if waiting.len() >= KEPT_MAX {
            metrics::counter!("atoll_redis_untold_total", "what" => self.inner.what).increment(1);
            return;
        }
        waiting.push_back(news);
        drop(waiting);
        self.inner.more.notify_one();
    }

    /// Tells all that waits, and then this. What cannot be told now is told as soon as it can be.
    pub(super) async fn now(&self, news: T) -> Result<(), Away> {
        self.soon(news);
        self.all().await
    }

    /// Tells all that waits.
    pub(super) async fn all(&self) -> Result<(), Away> {
        self.inner.tell_all().await
    }
}

impl<T: Tell> Inner<T> {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.waiting
            .lock()
            .expect("nothing panics while it holds what waits")
    }

    async fn tell_all(&self) -> Result<(), Away> {
        // What is being told is the first that waits until it is told: who finds nothing here knows that nothing is under way.
        if self.waiting().is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        loop {
            let first = self.waiting().front().cloned();
            let Some(first) = first else { return Ok(()) };
            first.tell(&self.link).await?;
            self.waiting().pop_front();
        }
    }

    async fn run(self: Arc<Self>) {
        loop {
            self.more.notified().await;
            let mut refused = 0;
            loop {
                self.link.up().await;
                let left = self.waiting().len();
                let Err(error) = self.tell_all().await else { break };
                tracing::warn!(%error, what = self.what, "Redis could not be told; it is told later");
                let is_stuck = self.link.is_up() && self.waiting().len() >= left;
                refused = if is_stuck { refused + 1 } else { 0 };
                if refused >= ATTEMPTS_MAX {
                    refused = 0;
                    self.give_up_first().await;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    async fn give_up_first(&self) {
        let _turn = self.turn.lock().await;
        metrics::counter!("atoll_redis_untold_total", "what" => self.what).increment(1);
        tracing::error!(
            what = self.what,
            "Redis does not take what it is told: it is given up"
        );
        self.waiting().pop_front();
    }
}
