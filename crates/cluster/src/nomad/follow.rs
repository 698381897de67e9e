//! Reading jobs and allocations, once and again and again.
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ports::discovery::Known;
use ports::scheduler::{BLOCKS_MAX, Block, BlockId, Blocks, ScheduleError};
use reqwest::Method;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;

use super::job::{Allocation, Asked, Job, asked, block, newest, prefix};
use super::{Server, is_missing, lock};
use crate::peer::{next_index, pause, told};

/// Entries of a page: an answer stays small enough to be read at once.
const PAGE: usize = 1_000;
/// Between two reads of the same list: blocks change slowly, and Nomad wakes everybody for every allocation of anybody's.
const APART: Duration = Duration::from_millis(300);
/// The longest time until a Nomad that failed is asked again.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A list, and the index of it.
type Listed<T> = (Vec<T>, Option<u64>);

impl Server {
    /// The jobs of our blocks: at once, or, with an index, when something has changed.
    pub(super) async fn jobs(&self, after: Option<u64>) -> Result<Listed<Job>, ScheduleError> {
        let query = vec![
            ("prefix", prefix(&self.config.cluster)),
            ("meta", "true".to_owned()),
        ];
        let (values, index) = self
            .pages("list the jobs of blocks", "jobs", query, after)
            .await?;
        let jobs = values
            .into_iter()
            .filter_map(|value| serde_json::from_value::<Job>(value).ok());
        Ok((jobs.filter(|job| self.is_block(&job.id)).collect(), index))
    }

    /// The allocations of our blocks.
    pub(super) async fn allocations(&self, after: Option<u64>) -> Result<Listed<Allocation>, ScheduleError> {
        // The cluster's name holds nothing that has a meaning in a pattern but `-`, which has none outside of brackets.
        let filter = format!("JobID matches \"^{}\"", prefix(&self.config.cluster));
        let query = vec![("filter", filter), ("task_states", "false".to_owned())];
        let (values, index) = self
            .pages("list the allocations of blocks", "allocations", query, after)
            .await?;
        let allocations = values
            .into_iter()
            .filter_map(|value| serde_json::from_value::<Allocation>(value).ok());
        Ok((
            allocations
                .filter(|allocation| self.is_block(&allocation.job))
                .collect(),
            index,
        ))
    }

    async fn pages(
        &self,
        what: &str,
        list: &str,
        query: Vec<(&str, String)>,
        after: Option<u64>,
    ) -> Result<Listed<Value>, ScheduleError> {
        let (mut all, mut first_index, mut next) = (Vec::new(), None, None::<String>);
        loop {
            let mut query = query.clone();
            query.push(("per_page", PAGE.to_string()));
            let mut wait = Duration::ZERO;
            match (&next, after.filter(|index| *index > 0)) {
                (Some(next), _) => query.push(("next_token", next.clone())),
                (None, Some(index)) => {
                    wait = self.config.wait;
                    query.push(("index", index.to_string()));
                    query.push(("wait", format!("{}ms", wait.as_millis())));
                }
                (None, None) => {}
            }
            if after.is_some() {
                query.push(("stale", String::new()));
            }
            let answer = self
                .ask(what, Method::GET, &["v1", list], query, None, wait)
                .await?;
            if answer.status != 200 {
                return Err(self.refused(what, &answer));
            }
            first_index = first_index.or(answer.number("x-nomad-index"));
            let page: Option<Vec<Value>> = answer.json().map_err(|error| self.failed(what, error))?;
            let page = page.unwrap_or_default();
            let is_empty = page.is_empty();
            all.extend(page);
            next = answer
                .word("x-nomad-nexttoken")
                .filter(|next| !next.is_empty())
                .map(str::to_owned);
            // What was over long ago is forgotten by Nomad itself.
            if next.is_none() || is_empty || all.len() >= 2 * BLOCKS_MAX {
                return Ok((all, first_index));
            }
        }
    }

    /// What a job was asked to be, with its metadata where a list told of it; `None` for one that is not there, or not of this cluster's
    /// making.
    pub(super) async fn asked(
        &self,
        id: &str,
        meta: Option<&BTreeMap<String, String>>,
    ) -> Result<Option<Arc<Asked>>, ScheduleError> {
        if let Some(known) = lock(&self.asks).get(id) {
            return Ok(Some(Arc::clone(known)));
        }
        let mut meta = meta.cloned();
        if meta.is_none() {
            // Nomads of before 1.5 do not tell of it in lists.
            let what = format!("tell of the job {id}");
            let path = ["v1", "job", id];
            let answer = self
                .ask(&what, Method::GET, &path, Vec::new(), None, Duration::ZERO)
                .await?;
            if is_missing(&answer) {
                return Ok(None);
            }
            if answer.status != 200 {
                return Err(self.refused(&what, &answer));
            }
            let job: Job = answer.json().map_err(|error| self.failed(&what, error))?;
            meta = job.meta;
        }
        let Some(read) = asked(&self.config.cluster, &meta.unwrap_or_default()) else {
            tracing::debug!(job = id, "a job called as a block is none of ours: left out");
            return Ok(None);
        };
        let read = Arc::new(read);
        lock(&self.asks).insert(id.to_owned(), Arc::clone(&read));
        Ok(Some(read))
    }

    /// Blocks, by the jobs that they are and the allocations that they have.
    pub(super) async fn joined(
        &self,
        jobs: &[Job],
        allocations: &[Allocation],
    ) -> Result<BTreeMap<BlockId, Block>, ScheduleError> {
        let newest = newest(allocations);
        let mut blocks = BTreeMap::new();
        for job in jobs.iter().take(BLOCKS_MAX) {
            if let Some(asked) = self.asked(&job.id, job.meta.as_ref()).await? {
                let block = block(job, &asked, newest.get(job.id.as_str()).copied());
                blocks.insert(block.id.clone(), block);
            }
        }
        Ok(blocks)
    }

    /// Forgets what jobs were asked to be that are forgotten.
    fn forget_but(&self, blocks: &BTreeMap<BlockId, Block>) {
        let mut asks = lock(&self.asks);
        if asks.len() > 2 * blocks.len() + 1_000 {
            asks.retain(|id, _| blocks.contains_key(&BlockId(id.clone())));
        }
    }
}

/// Watches jobs and allocations until nobody is left who could be told.
pub(super) async fn follow(server: Weak<Server>, view: watch::Sender<Arc<Blocks>>) {
    let Some(stop) = server.upgrade().map(|server| server.stop.clone()) else {
        return;
    };
    let mut failures = 0;
    while !stop.is_cancelled() {
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            ended = follow_while_it_answers(&server, &view, &mut failures) => ended,
        };
        let Some(error) = ended else { return };
        failures += 1;
        let why = told(&error);
        view.send_if_modified(|known| {
            let is_news = !matches!(known.known, Known::Stale(_));
            if is_news {
                tracing::warn!(error = why, "Nomad does not tell of blocks; the last known stay");
                Arc::make_mut(known).known = Known::Stale(why);
            }
            is_news
        });
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(pause(failures, PAUSE_MAX)) => {}
        }
    }
}

/// Reads both lists whenever either has changed; returns why that failed, or `None` where nobody is left.
async fn follow_while_it_answers(
    server: &Weak<Server>,
    view: &watch::Sender<Arc<Blocks>>,
    failures: &mut u32,
) -> Option<ScheduleError> {
    let read_jobs = |after: u64| {
        let server = server.upgrade();
        Box::pin(async move {
            match server {
                Some(server) => Some(server.jobs(Some(after)).await),
                None => None,
            }
        })
    };
    let read_allocations = |after: u64| {
        let server = server.upgrade();
        Box::pin(async move {
            match server {
                Some(server) => Some(server.allocations(Some(after)).await),
                None => None,
            }
        })
    };
    let (mut jobs, mut allocations) = (None, None);
    let (mut jobs_index, mut allocations_index) = (0, 0);
    let (mut next_jobs, mut next_allocations) = (read_jobs(0), read_allocations(0));
    loop {
        tokio::select! {
            read = &mut next_jobs => match read? {
                Ok((read, index)) => {
                    jobs_index = next_index(jobs_index, index);
                    jobs = Some(read);
                    next_jobs = read_jobs(jobs_index);
                }
                Err(error) => return Some(error),
            },
            read = &mut next_allocations => match read? {
                Ok((read, index)) => {
                    allocations_index = next_index(allocations_index, index);
                    allocations = Some(read);
                    next_allocations = read_allocations(allocations_index);
                }
                Err(error) => return Some(error),
            },
        }
        if let (Some(jobs), Some(allocations)) = (&jobs, &allocations) {
            let server = server.upgrade()?;
            let all = match server.joined(jobs, allocations).await {
                Ok(all) => all,
                Err(error) => return Some(error),
            };
            server.forget_but(&all);
            *failures = 0;
            let blocks = Blocks {
                all,
                known: Known::Current,
            };
            view.send_if_modified(|known| {
                let is_news = **known != blocks;
                if is_news {
                    *known = Arc::new(blocks);
                }
                is_news
            });
            drop(server);
            sleep(APART).await;
        }
    }
}
