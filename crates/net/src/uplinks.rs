//! Forwarding on the links that lead out, without making the host a router for anybody else.
//!
//! Answers to sandboxes come in by links that Atoll did not make. Each of them needs `forwarding`, which also lets
//! strangers send packets *through* the host. So a link is first put into the firewall's set `uplinks`, whose rule
//! drops what strangers begin, and only then gets `forwarding`. A host that is a router already (`ip_forward` is 1,
//! which Atoll never writes) is left as it is. Links come and go, so this is done again at each of the kernel's news.
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use linux::netlink::{Answer, Family, Socket};
use linux::nft::Transaction;
use linux::rtnl::{self, Link, News};
use rustix::event::{EventfdFlags, PollFd, PollFlags};

use crate::address::is_slot;
use crate::table;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// The thread that looks after the links. Ends when dropped; what it did stays.
#[derive(Debug)]
pub(crate) struct Uplinks {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// What is to be done so that answers come in by every link and strangers do not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Steps {
    guard: Vec<String>,
    unguard: Vec<String>,
    forward: Vec<String>,
}

fn decide(is_router: bool, links: &[Link], guarded: &BTreeSet<String>) -> Steps {
    if is_router {
        return Steps {
            unguard: guarded.iter().cloned().collect(),
            ..Steps::default()
        };
    }
    let outward = |link: &&Link| link.is_up && !link.is_loopback && !is_slot(&link.name);
    let shut: Vec<String> = links
        .iter()
        .filter(outward)
        .filter(|link| link.forwarding == Some(false))
        .map(|link| link.name.clone())
        .collect();
    Steps {
        guard: shut
            .iter()
            .filter(|name| !guarded.contains(*name))
            .cloned()
            .collect(),
        unguard: guarded
            .iter()
            .filter(|name| !links.iter().any(|link| link.name == **name))
            .cloned()
            .collect(),
        forward: shut,
    }
}

/// The links as they were last seen, and the sockets to change that.
#[derive(Debug)]
struct Watch {
    table: String,
    routes: Socket,
    firewall: Socket,
    news: Socket,
    guarded: BTreeSet<String>,
    /// The links that are no slot's.
    outward: BTreeSet<u32>,
}

impl Uplinks {
    /// Does it once, and again at all news. `guarded` is what the table has in its set already.
    pub(crate) fn start(table: &str, guarded: Vec<String>) -> io::Result<Self> {
        let mut watch = Watch {
            table: table.to_owned(),
            // Subscribed before the first look, so that nothing happens in between.
            news: Socket::subscribed(Family::Route, rtnl::NEWS_OF_LINKS | rtnl::NEWS_OF_IPV4_SETTINGS)?,
            routes: Socket::open(Family::Route)?,
            firewall: Socket::open(Family::Netfilter)?,
            guarded: guarded.into_iter().collect(),
            outward: BTreeSet::new(),
        };
        watch.pass()?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let thread = std::thread::Builder::new()
            .name("net-uplinks".to_owned())
            .spawn(move || watch.run(&stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Uplinks {
    fn drop(&mut self) {
        // An event counter takes one write at any time.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes forwarding back from the links that had it for our sake.
pub(crate) fn restore(guarded: &[String]) -> io::Result<()> {
    if is_router()? {
        return Ok(());
    }
    guarded.iter().try_for_each(|name| set_forwarding(name, false))
}

impl Watch {
    fn run(mut self, stopped: &OwnedFd) {
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.news.as_fd(), PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "links are no longer watched");
                    return;
                }
                Ok(_) => {}
            }
            if !fds[0].revents().is_empty() {
                return;
            }
            let told = self.news.news();
            let acted = told.and_then(|news| {
                if self.concerns_us(news.as_deref()) {
                    self.pass()
                } else {
                    Ok(())
                }
            });
            if let Err(error) = acted {
                tracing::warn!(%error, "a new link may not carry the traffic of sandboxes");
            }
        }
    }

    /// Slots come and go often, and listing links takes long when there are many of them.
    fn concerns_us(&self, news: Option<&[Answer]>) -> bool {
        news.is_none_or(|news| {
            news.iter().filter_map(rtnl::news).any(|news| match news {
                News::Link(name) => !is_slot(&name),
                News::Settings(link) => link.is_none_or(|index| self.outward.contains(&index)),
            })
        })
    }

    fn pass(&mut self) -> io::Result<()> {
        let links = rtnl::links(&self.routes)?;
        self.outward = links
            .iter()
            .filter(|link| !is_slot(&link.name))
            .map(|link| link.index)
            .collect();
        let steps = decide(is_router()?, &links, &self.guarded);
        if !steps.guard.is_empty() || !steps.unguard.is_empty() {
            let mut t = Transaction::new(&self.table);
            table::uplinks(&mut t, &steps.guard, &steps.unguard);
            t.commit(&self.firewall)?;
            self.guarded.extend(steps.guard);
            self.guarded.retain(|name| !steps.unguard.contains(name));
        }
        steps
            .forward
            .iter()
            .try_for_each(|name| set_forwarding(name, true))
    }
}

fn is_router() -> io::Result<bool> {
    std::fs::read_to_string(IP_FORWARD).map(|text| text.trim() != "0")
}

/// A link that went away meanwhile needs no setting.
fn set_forwarding(link: &str, on: bool) -> io::Result<()> {
    let path = format!("/proc/sys/net/ipv4/conf/{link}/forwarding");
    match std::fs::write(path, if on { "1" } else { "0" }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, forwarding: bool) -> Link {
        Link {
            index: 1,
            name: name.to_owned(),
            is_up: true,
            is_loopback: name == "lo",
            mtu_bytes: 1500,
            forwarding: Some(forwarding),
        }
    }
    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn a_link_is_guarded_before_it_forwards() {
        let links = [
            link("lo", false),
            link("eth0", false),
            link("br0", true),
            link("at0-1", false),
        ];
        let steps = decide(false, &links, &BTreeSet::new());
        assert_eq!(steps.guard, names(&["eth0"]));
        assert_eq!(steps.forward, names(&["eth0"]));
        assert!(steps.unguard.is_empty());
    }

    #[test]
    fn what_was_done_is_not_done_again_and_what_is_gone_is_forgotten() {
        let guarded = names(&["eth0", "eth1"]).into_iter().collect();
        let steps = decide(false, &[link("eth0", true)], &guarded);
        assert_eq!(
            steps,
            Steps {
                unguard: names(&["eth1"]),
                ..Steps::default()
            }
        );
    }

    #[test]
    fn a_router_is_left_as_it_is() {
        let guarded = names(&["eth0"]).into_iter().collect();
        let steps = decide(true, &[link("eth0", true), link("eth1", false)], &guarded);
        assert_eq!(steps.unguard, names(&["eth0"]));
        assert!(steps.guard.is_empty() && steps.forward.is_empty());
    }
}
