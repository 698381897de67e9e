//! Routes.
//!
//! `routes` is a hash: of each sandbox `<number> <version> <node>/<execution> <tokens and mask>`. Every change of it takes the next
//! number from `routes:number` and is an entry of that number in the stream `routes:changes`, which holds the last `CHANGES_MAX`.
//! `routes:life` is drawn when Redis is found without it: a Redis that lost its data has another one.
//!
//! ```text
//!   publish, withdraw ── one script ──▶ routes + number + change
//!                                                      │ XREAD
//!   copy ◀── number is the next one ───────────────────┤
//!   copy ◀── read whole: at first, after a gap, when the line broke, when the life is another one
//! ```
mod payload;
mod view;

use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use model::{ExecutionId, SandboxId, Seat};
use ports::{CatalogError, Route, RouteChange};
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamReadReply};
use redis::{RedisResult, Script};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use self::payload::Kept;
use self::view::{Standing, View};
use super::link::{Away, Link, failed, within, within_more};
use super::task::Task;
use super::tell::{Tell, Teller};

/// A copy that is further behind reads the whole. Some 300 bytes each: 10 MiB.
const CHANGES_MAX: usize = 32_768;
/// Changes that are read at once.
const READ_AT_ONCE: usize = 1000;
/// Routes that are read at once, of the whole.
const SCAN_AT_ONCE: usize = 1000;
/// How long Redis may wait for a change, and how often a copy looks whether Redis lost its data.
const LOOK: Duration = Duration::from_millis(250);
/// How long a copy tries again after a failure; the line itself is opened again by its keeper.
const AGAIN: Duration = Duration::from_millis(100);
/// What Redis lost is served for so long while the reconcilers publish it again: each passes three times in it.
const GRACE: Duration = Duration::from_secs(15);
/// Changes kept for a slow reader in this process; one that lags more reads the whole copy.
const BACKLOG_MAX: usize = 4096;

const STAMP: &str = r"
local function stamp()
  if redis.call('EXISTS', KEYS[3]) == 0 then
    -- Numbers of another life do not come again.
    local time = redis.call('TIME')
    redis.call('SET', KEYS[3], string.format('%.0f', time[1] * 1000000 + time[2]))
  end
  redis.call('SET', KEYS[4], ARGV[1], 'NX')
  return string.format('%.0f', redis.call('INCR', KEYS[3]))
end
local function tell(number, what, value)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], number .. '-0', 's', ARGV[3], what, value)
end
local old = redis.call('HGET', KEYS[1], ARGV[3])
";

/// Says what stands then.
const PUBLISH: &str = r"
if old then
  local number, version, rest = string.match(old, '^(%d+) (%d+) (.*)$')
  if not version then old = false
  elseif tonumber(version) > tonumber(ARGV[4]) then return old
  elseif tonumber(version) == tonumber(ARGV[4]) and rest == ARGV[5] then return old end
end
local number = stamp()
local value = ARGV[4] .. ' ' .. ARGV[5]
redis.call('HSET', KEYS[1], ARGV[3], number .. ' ' .. value)
tell(number, 'p', value)
return number .. ' ' .. value
";

/// Says under which number it went, or what stands, or nothing where nothing stands.
const WITHDRAW: &str = r"
if not old then return false end
local number, version, seat = string.match(old, '^(%d+) (%d+) (%S+)')
if seat and (seat ~= ARGV[4] or tonumber(version) > tonumber(ARGV[5])) then return old end
local number = stamp()
redis.call('HDEL', KEYS[1], ARGV[3])
tell(number, 'w', ARGV[4])
return number
";

/// Draws a new life, where the old one is still the one of which data were lost.
const RENEW: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2])
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local number = tonumber(redis.call('GET', KEYS[2]) or '0')
  redis.call('SET', KEYS[2], string.format('%.0f', math.max(number, now)))
end
return 0
";

static PUBLISHING: std::sync::LazyLock<Script> =
    std::sync::LazyLock::new(|| Script::new(&format!("{STAMP}{PUBLISH}")));
static WITHDRAWING: std::sync::LazyLock<Script> =
    std::sync::LazyLock::new(|| Script::new(&format!("{STAMP}{WITHDRAW}")));
static RENEWING: std::sync::LazyLock<Script> = std::sync::LazyLock::new(|| Script::new(RENEW));

const UNPOISONED: &str = "nothing panics while it holds the copy";

/// Routes, with a copy of all of them.
pub(super) struct Catalog {
    copy: Arc<Copy>,
    teller: Teller<Withdrawal>,
    _follower: Task,
}

/// The copy, and who is told of its changes.
struct Copy {
    link: Link,
    view: RwLock<View>,
    changes: broadcast::Sender<RouteChange>,
    /// Whether all routes were read once.
    whole: watch::Sender<bool>,
}

/// A route that is to go, as it was known when that was said.
#[derive(Clone)]
struct Withdrawal {
    copy: Arc<Copy>,
    sandbox: SandboxId,
    seat: Seat,
    version: u64,
}

fn fresh_life() -> String {
    ExecutionId::random().to_string()
}

/// What both scripts begin with.
fn script<'a>(script: &'a Script, link: &Link, sandbox: SandboxId) -> redis::ScriptInvocation<'a> {
    let mut call = script.prepare_invoke();
    for name in ["routes", "routes:changes", "routes:number", "routes:life"] {
        call.key(link.key(name));
    }
    call.arg(fresh_life()).arg(CHANGES_MAX).arg(sandbox.as_str());
    call
}

impl Copy {
    fn tell(&self, changes: Vec<RouteChange>) {
        for change in changes {
            let _ = self.changes.send(change);
        }
    }

    /// Changes the copy, and tells what changed.
    fn edit(&self, edit: impl FnOnce(&mut View) -> Vec<RouteChange>) {
        // Told under the lock: what two threads change is told in its order.
        let mut view = self.view.write().expect(UNPOISONED);
        let changes = edit(&mut view);
        self.tell(changes);
    }

    /// Takes a route out of Redis, where it is not newer than `version`, and out of the copy.
    async fn withdraw(&self, sandbox: SandboxId, seat: Seat, version: u64) -> Result<(), Away> {
        let mut call = script(&WITHDRAWING, &self.link, sandbox);
        call.arg(payload::seat(seat)).arg(version);
        let said: Option<String> = self.link.twice(|| self.link.call(&call)).await?;
        match said {
            None => self.edit(|view| view.nothing_stands(sandbox, seat)),
            Some(said) if said.contains(' ') => {
                let standing = Standing::parse(sandbox, &said)?;
                self.edit(|view| view.put(sandbox, standing));
            }
            Some(number) => {
                let number = number.parse().map_err(|_| Away::Foreign("a number"))?;
                self.edit(|view| view.take(sandbox, seat, number));
            }
        }
        Ok(())
    }

    /// What Redis has of one sandbox.
    async fn ask(&self, sandbox: SandboxId) -> Result<Option<Arc<Route>>, Away> {
        let mut ask = redis::cmd("HGET");
        ask.arg(self.link.key("routes")).arg(sandbox.as_str());
        let said: Option<String> = self.link.twice(|| self.link.query(&ask)).await?;
        let Some(said) = said else { return Ok(None) };
        let standing = Standing::parse(sandbox, &said)?;
        let route = Arc::clone(&standing.route);
        let mut hidden = false;
        self.edit(|view| {
            hidden = view.is_hidden(&route);
            view.put(sandbox, standing)
        });
        Ok((!hidden).then_some(route))
    }

    async fn follow(self: Arc<Self>) {
        loop {
            self.link.up().await;
            if let Err(error) = self.follow_once().await {
                tracing::debug!(%error, "the copy of the routes does not follow at present");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Reads the whole and follows the changes until something breaks.
    async fn follow_once(&self) -> Result<(), Away> {
        let mut line = self.link.own().await?;
        loop {
            let began = Instant::now();
            let mut whole = self.read(&mut line).await?;
            let (life, at) = self.place();
            if whole.life == life && whole.number < at {
                // It came back with what it had written down, and lost what came after that.
                self.renew(&life).await?;
                whole = self.read(&mut line).await?;
            }
            self.edit(|view| view.replace(whole, Instant::now() + GRACE));
            self.whole.send_replace(true);
            metrics::counter!("atoll_redis_catalog_reads_total").increment(1);
            metrics::histogram!("atoll_redis_catalog_read_seconds").record(began.elapsed());
            let why = self.follow_changes(&mut line).await?;
            tracing::warn!(why, "the routes are read anew");
        }
    }

    /// The life that is known, and the last change of it.
    fn place(&self) -> (String, u64) {
        let view = self.view.read().expect(UNPOISONED);
        (view.life().to_owned(), view.number())
    }

    /// Draws a new life, where Redis still has the one of which it lost data.
    async fn renew(&self, life: &str) -> Result<(), Away> {
        let mut renew = RENEWING.prepare_invoke();
        renew
            .key(self.link.key("routes:life"))
            .key(self.link.key("routes:number"))
            .arg(life)
            .arg(fresh_life());
        self.link.call(&renew).await
    }

    /// Reads everything.
    async fn read(&self, line: &mut MultiplexedConnection) -> Result<view::Whole, Away> {
        let mut head = redis::pipe();
        let life = self.link.key("routes:life");
        head.cmd("SET").arg(&life).arg(fresh_life()).arg("NX").ignore();
        head.cmd("GET").arg(&life);
        head.cmd("GET").arg(self.link.key("routes:number"));
        let head = within(head.query_async(line)).await;
        let (life, number): (String, Option<u64>) = head.map_err(|error| failed(&error))?;
        let mut routes = Vec::new();
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(self.link.key("routes"))
                .arg(cursor)
                .arg("COUNT")
                .arg(SCAN_AT_ONCE);
            let page: RedisResult<(u64, Vec<(String, String)>)> = within(scan.query_async(line)).await;
            let (next, page) = page.map_err(|error| failed(&error))?;
            for (sandbox, said) in page {
                let Ok(sandbox) = sandbox.parse() else { continue };
                match Standing::parse(sandbox, &said) {
                    Ok(standing) => routes.push(standing),
                    Err(error) => tracing::error!(%error, %sandbox, "a route cannot be read"),
                }
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        Ok(view::Whole {
            life,
            // Read before the routes: changes that came between are read again, and change nothing.
            number: number.unwrap_or(0),
            routes,
        })
    }

    /// Follows until the whole is to be read again; says why.
    async fn follow_changes(&self, line: &mut MultiplexedConnection) -> Result<&'static str, Away> {
        let mut looked = Instant::now();
        loop {
            let at = self.view.read().expect(UNPOISONED).number();
            let mut read = redis::cmd("XREAD");
            read.arg("COUNT")
                .arg(READ_AT_ONCE)
                .arg("BLOCK")
                .arg(u64::try_from(LOOK.as_millis()).unwrap_or(u64::MAX))
                .arg("STREAMS")
                .arg(self.link.key("routes:changes"))
                .arg(format!("{at}-0"));
            let said: RedisResult<StreamReadReply> = within_more(LOOK, read.query_async(line)).await;
            let said = said.map_err(|error| failed(&error))?;
            let entries: Vec<_> = said.keys.into_iter().flat_map(|stream| stream.ids).collect();
            let nothing_came = entries.is_empty();
            let mut gap = false;
            self.edit(|view| {
                let mut changes = Vec::new();
                for entry in &entries {
                    let is_next = change(entry).is_some_and(|change| view.follow(change, &mut changes));
                    if !is_next {
                        gap = true;
                        break;
                    }
                }
                view.let_go(Instant::now(), &mut changes);
                changes
            });
            if gap {
                return Ok("changes were missed");
            }
            if nothing_came || looked.elapsed() >= LOOK {
                looked = Instant::now();
                if let Some(why) = self.look(line, nothing_came.then_some(at)).await? {
                    return Ok(why);
                }
            }
        }
    }

    /// Looks whether Redis lost its data: then there is another life, or a number that is lower than what was seen.
    async fn look(
        &self,
        line: &mut MultiplexedConnection,
        nothing_after: Option<u64>,
    ) -> Result<Option<&'static str>, Away> {
        let life = self.link.key("routes:life");
        let counter = self.link.key("routes:number");
        let mut ask = redis::pipe();
        ask.cmd("GET").arg(&life).cmd("GET").arg(&counter);
        // One after the other answers what stood at one instant: nothing is answered between them.
        ask.cmd("XREVRANGE")
            .arg(self.link.key("routes:changes"))
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1);
        ask.atomic();
        let said: RedisResult<(Option<String>, Option<u64>, redis::streams::StreamRangeReply)> =
            within(ask.query_async(line)).await;
        let (present, number, last) = said.map_err(|error| failed(&error))?;
        let (known, at) = self.place();
        if present.as_deref() != Some(known.as_str()) {
            return Ok(Some("Redis lost its data"));
        }
        let number = number.unwrap_or(0);
        if number < at {
            self.renew(&known).await?;
            return Ok(Some("Redis lost its newest data"));
        }
        // The stream was taken away, and the rest was not.
        let last = last.ids.last().and_then(|entry| number_of(&entry.id));
        let is_gone = nothing_after.is_some_and(|at| number > at && last.is_none_or(|last| last < number));
        Ok(is_gone.then_some("changes were removed"))
    }
}

fn number_of(id: &str) -> Option<u64> {
    id.strip_suffix("-0")?.parse().ok()
}

/// A change, as its entry tells it.
fn change(entry: &StreamId) -> Option<view::Change> {
    let number = number_of(&entry.id)?;
    let sandbox = entry.get::<String>("s")?.parse().ok()?;
    if let Some(value) = entry.get::<String>("p") {
        let standing = Standing::parse(sandbox, &format!("{number} {value}")).ok()?;
        return Some(view::Change::Published(standing));
    }
    let seat = payload::parse_seat(&entry.get::<String>("w")?)?;
    Some(view::Change::Withdrawn {
        number,
        sandbox,
        seat,
    })
}

#[async_trait]
impl Tell for Withdrawal {
    async fn tell(&self, _: &Link) -> Result<(), Away> {
        self.copy.withdraw(self.sandbox, self.seat, self.version).await?;
        let (sandbox, seat) = (self.sandbox, self.seat);
        self.copy.view.write().expect(UNPOISONED).unhide(sandbox, seat);
        Ok(())
    }
}

impl Catalog {
    /// Routes in Redis, with a copy that follows them.
    pub(super) fn follow(link: Link) -> Self {
        let copy = Arc::new(Copy {
            link: link.clone(),
            view: RwLock::default(),
            changes: broadcast::channel(BACKLOG_MAX).0,
            whole: watch::Sender::new(false),
        });
        Self {
            teller: Teller::new(link, "routes"),
            _follower: Task::spawn(Arc::clone(&copy).follow()),
            copy,
        }
    }

    /// Waits until all routes were read once.
    pub(super) async fn first_read(&self) {
        // The sender is in our hand.
        let _ = self.copy.whole.subscribe().wait_for(|whole| *whole).await;
    }
}

fn away(error: Away) -> CatalogError {
    CatalogError(error.into())
}

#[async_trait]
impl ports::Catalog for Catalog {
    async fn publish(&self, route: Route) -> Result<(), CatalogError> {
        let sandbox = route.sandbox;
        let kept = serde_json::to_string(&Kept::of(&route)).map_err(|error| CatalogError(error.into()))?;
        let mut call = script(&PUBLISHING, &self.copy.link, sandbox);
        call.arg(route.version)
            .arg(format!("{} {kept}", payload::seat(route.seat)));
        let link = &self.copy.link;
        let stands: String = link.twice(|| link.call(&call)).await.map_err(away)?;
        let standing = Standing::parse(sandbox, &stands).map_err(away)?;
        self.copy.edit(|view| view.put(sandbox, standing));
        Ok(())
    }

    async fn withdraw(&self, sandbox: SandboxId, seat: Seat) -> Result<(), CatalogError> {
        let withdrawn = self.copy.withdraw(sandbox, seat, u64::MAX >> 12).await;
        withdrawn.map_err(|error| {
            let mut hidden = None;
            self.copy.edit(|view| {
                let (version, changes) = view.hide(sandbox, seat);
                hidden = version;
                changes
            });
            if let Some(version) = hidden {
                self.teller.soon(Withdrawal {
                    copy: Arc::clone(&self.copy),
                    sandbox,
                    seat,
                    version,
                });
            }
            away(error)
        })
    }

    async fn find(&self, sandbox: SandboxId) -> Result<Option<Arc<Route>>, CatalogError> {
        match self.copy.view.read().expect(UNPOISONED).find(sandbox) {
            view::Found::Route(route) => return Ok(Some(route)),
            view::Found::Withdrawn => return Ok(None),
            view::Found::Unknown => {}
        }
        self.copy.ask(sandbox).await.map_err(away)
    }

    async fn published(&self, sandbox: SandboxId) -> Result<Option<Arc<Route>>, CatalogError> {
        let known = self.copy.view.read().expect(UNPOISONED).published(sandbox);
        match known {
            Some(route) if self.copy.link.is_up() => Ok(Some(route)),
            _ => self.copy.ask(sandbox).await.map_err(away),
        }
    }

    async fn all(&self) -> Result<Vec<Arc<Route>>, CatalogError> {
        Ok(self.copy.view.read().expect(UNPOISONED).all())
    }

    fn changes(&self) -> broadcast::Receiver<RouteChange> {
        self.copy.changes.subscribe()
    }
}
