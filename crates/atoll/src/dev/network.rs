//! A bridge, and a network namespace for each node: as if they were machines on one network.
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::layout::{Layout, NodeNet};

const BRIDGE: &str = "atolldev0";

/// The network. It is removed by [`Network::remove`], or by the next start.
pub(super) struct Network {
    netns: Vec<String>,
    /// Whether links that come up forwarded before: taken back at the end.
    forwarded: String,
}

/// Whether links that come up forward.
const FORWARDING: &str = "/proc/sys/net/ipv4/conf/default/forwarding";

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("cannot run ip, of the package iproute2")?;
    if !output.status.success() {
        bail!(
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Removes what may not be there.
fn clear(arguments: &str) {
    let _ = ip(arguments);
}

impl Network {
    /// Makes it anew.
    pub(super) fn make(layout: &Layout) -> Result<Self> {
        let network = Self {
            netns: layout.nodes.iter().map(|node| node.netns.clone()).collect(),
            forwarded: std::fs::read_to_string(FORWARDING)
                .with_context(|| format!("cannot read {FORWARDING}"))?,
        };
        network.remove();
        ip(&format!("link add {BRIDGE} type bridge"))?;
        ip(&format!("addr add {}/24 dev {BRIDGE}", layout.gateway))?;
        ip(&format!("link set {BRIDGE} up"))?;
        // Nodes reach what this machine reaches, and answers come back to them by whichever link they come.
        let bridge = format!("/proc/sys/net/ipv4/conf/{BRIDGE}/forwarding");
        for forwarding in [&bridge, FORWARDING] {
            std::fs::write(forwarding, "1").with_context(|| format!("cannot write {forwarding}"))?;
        }
        for node in &layout.nodes {
            add(node, &layout.gateway.to_string())?;
        }
        Ok(network)
    }

    /// Takes it away.
    pub(super) fn remove(&self) {
        for netns in &self.netns {
            clear(&format!("netns del {netns}"));
        }
        clear(&format!("link del {BRIDGE}"));
        let _ = std::fs::write(FORWARDING, &self.forwarded);
    }
}

fn add(node: &NodeNet, gateway: &str) -> Result<()> {
    let (netns, link) = (&node.netns, &node.link);
    clear(&format!("link del {link}"));
    ip(&format!("netns add {netns}"))?;
    ip(&format!("link add {link} type veth peer name eth0 netns {netns}"))?;
    ip(&format!("link set {link} master {BRIDGE} up"))?;
    let inside = |arguments: String| ip(&format!("-n {netns} {arguments}"));
    inside(format!("addr add {}/24 dev eth0", node.address))?;
    inside("link set lo up".to_owned())?;
    inside("link set eth0 up".to_owned())?;
    inside(format!("route add default via {gateway}"))
}
