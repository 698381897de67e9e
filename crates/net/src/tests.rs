//! Each test has a host, an internet and sandboxes of its own: network namespaces with links between them.
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::RawFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::*;

const INSTANCE: u32 = 77;
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a packet that should not arrive is waited for.
const SILENCE: Duration = Duration::from_millis(300);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
const PRIVATE: [Ipv4Addr; 5] = [
    Ipv4Addr::new(192, 168, 50, 10),
    Ipv4Addr::new(10, 5, 0, 10),
    Ipv4Addr::new(172, 20, 0, 10),
    Ipv4Addr::new(100, 64, 0, 10),
    Ipv4Addr::new(169, 254, 169, 254),
];
const HOST: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(192, 168, 50, 1)];
const PORT: u16 = 8080;

/// A host with one way out.
struct World {
    home: OwnedFd,
    outside: OwnedFd,
}

/// A process in a user and network namespace of its own.
struct Sandbox {
    child: Child,
    netns: OwnedFd,
    slot: u32,
}

/// The kernel of a microVM: its `eth0` is a tap of its own, and frames are carried from one file to the other.
struct Guest {
    netns: OwnedFd,
    stop: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

/// Who has a namespace to connect from.
trait Inside {
    fn netns(&self) -> &OwnedFd;
}

impl Inside for Sandbox {
    fn netns(&self) -> &OwnedFd {
        &self.netns
    }
}

impl Inside for Guest {
    fn netns(&self) -> &OwnedFd {
        &self.netns
    }
}

impl Guest {
    fn start(world: &World, tap: Tap) -> Self {
        let netns = empty_netns();
        let own = within(&netns, &world.home, || {
            let own = linux::tap::open("eth0").unwrap();
            let mac = GUEST_MAC.map(|b| format!("{b:02x}")).join(":");
            ip(&format!("link set eth0 address {mac}"));
            ip(&format!("addr add {GUEST}/{GUEST_PREFIX} dev eth0"));
            ip("link set lo up");
            ip("link set eth0 up");
            ip(&format!("route add default via {GUEST_GATEWAY}"));
            own
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let carrier = std::thread::spawn(move || {
            let (one, two) = (std::fs::File::from(own), std::fs::File::from(tap.file));
            while !stopped.load(Ordering::SeqCst) {
                let mut fds = [&one, &two].map(|file| PollFd::new(file, PollFlags::IN));
                let patience = Timespec {
                    tv_sec: 0,
                    tv_nsec: 20_000_000,
                };
                rustix::event::poll(&mut fds, Some(&patience)).unwrap();
                let ready = [0, 1].map(|i: usize| fds[i].revents().contains(PollFlags::IN));
                for (is_ready, mut from, mut to) in [(ready[0], &one, &two), (ready[1], &two, &one)] {
                    let mut frame = [0; 70_000];
                    if is_ready {
                        let length = from.read(&mut frame).unwrap();
                        to.write_all(&frame[..length]).unwrap();
                    }
                }
            }
        });
        Self {
            netns,
            stop,
            carrier: Some(carrier),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// Runs a test in a world of its own, if that can be made.
#[expect(clippy::print_stderr, reason = "a test that does not run says so")]
fn in_world(test: impl FnOnce(&World) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: makes network namespaces, run it as root");
        return;
    }
    let run = move || test(&World::new());
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

impl World {
    fn new() -> Self {
        netns::unshare().unwrap();
        let home = netns::current().unwrap();
        let outside = empty_netns();
        let world = Self { home, outside };
        ip("link set lo up");
        world.link("up0", "out0");
        for address in HOST {
            ip(&format!("addr add {address}/24 dev up0"));
        }
        for address in [OUTSIDE, OTHER, PRIVATE[0]] {
            world.out(&format!("addr add {address}/24 dev out0"));
        }
        for address in &PRIVATE[1..] {
            world.out(&format!("addr add {address}/32 dev out0"));
            ip(&format!("route add {address}/32 dev up0"));
        }
        within(&world.outside, &world.home, || {
            serve_tcp("0.0.0.0:80");
            // Each answers from the address that was asked.
            for address in [OUTSIDE, OTHER].iter().chain(&PRIVATE) {
                serve_udp(&format!("{address}:53"));
                serve_udp(&format!("{address}:9999"));
            }
        });
        serve_tcp(&format!("0.0.0.0:{PORT}"));
        // The way is there before anything is claimed about who may go it.
        for address in [OUTSIDE, OTHER].iter().chain(&PRIVATE) {
            eventually(|| echo(&mut TcpStream::connect((*address, 80))?));
        }
        for address in HOST {
            TcpStream::connect((address, PORT)).unwrap();
        }
        world
    }

    /// A pair of links from the host to the outside.
    fn link(&self, here: &str, there: &str) {
        let fd: RawFd = std::os::fd::AsRawFd::as_raw_fd(&self.outside);
        let netns = format!("/proc/{}/fd/{fd}", std::process::id());
        ip(&format!(
            "link add {here} type veth peer name {there} netns {netns}"
        ));
        ip(&format!("link set {here} up"));
        self.out("link set lo up");
        self.out(&format!("link set {there} up"));
    }

    fn out(&self, arguments: &str) {
        within(&self.outside, &self.home, || ip(arguments));
    }

    fn net(&self, resolvers: &[Ipv4Addr]) -> Net {
        self.again(resolvers, &[])
    }
    #[expect(clippy::unused_self, reason = "only in a world of one's own")]
    fn again(&self, resolvers: &[Ipv4Addr], adopted: &[(u32, NetworkPolicy)]) -> Net {
        Net::open_with(INSTANCE, resolvers.to_vec(), adopted).unwrap()
    }

    fn sandbox(&self, net: &Net, slot: u32) -> Sandbox {
        let sandbox = Sandbox::start(slot);
        net.attach(slot, sandbox.pidfd().as_fd()).unwrap();
        sandbox
    }
    fn claimed(&self, net: &Net, slot: u32, policy: &NetworkPolicy) -> Sandbox {
        let sandbox = self.sandbox(net, slot);
        net.claim(slot, policy).unwrap();
        sandbox
    }

    fn guest(&self, net: &Net, slot: u32, policy: &NetworkPolicy) -> (Guest, OwnedFd) {
        let (_, tap) = net.attach_tap(slot).unwrap();
        net.claim(slot, policy).unwrap();
        let namespace = tap.namespace.try_clone().unwrap();
        (Guest::start(self, tap), namespace)
    }

    fn connect(&self, from: &impl Inside, to: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
        self.connect_for(PATIENCE, from, to, port)
    }
    fn connect_for(
        &self,
        time: Duration,
        from: &impl Inside,
        to: Ipv4Addr,
        port: u16,
    ) -> io::Result<TcpStream> {
        within(from.netns(), &self.home, || {
            TcpStream::connect_timeout(&SocketAddr::new(to.into(), port), time)
        })
    }
    #[track_caller]
    fn reaches(&self, from: &impl Inside, to: Ipv4Addr) {
        let mut stream = self
            .connect(from, to, 80)
            .unwrap_or_else(|e| panic!("{to} is not reached: {e}"));
        echo(&mut stream).unwrap_or_else(|e| panic!("{to} does not answer: {e}"));
        self.udp(from, to, 9999)
            .unwrap_or_else(|e| panic!("{to} does not answer to UDP: {e}"));
    }
    #[track_caller]
    fn reaches_not(&self, from: &impl Inside, to: Ipv4Addr) {
        for port in [80, PORT] {
            if let Ok(mut stream) = self.connect_for(SILENCE, from, to, port) {
                panic!("{to}:{port} is reached: {:?}", echo(&mut stream));
            }
        }
        assert!(self.udp(from, to, 9999).is_err(), "{to} answers to UDP");
    }
    fn udp(&self, from: &impl Inside, to: Ipv4Addr, port: u16) -> io::Result<()> {
        let socket = within(from.netns(), &self.home, || UdpSocket::bind("0.0.0.0:0"))?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.connect((to, port))?;
        socket.send(b"ping")?;
        let mut buffer = [0; 16];
        let length = socket.recv(&mut buffer)?;
        assert_eq!(&buffer[..length], b"ping");
        Ok(())
    }
}

impl Sandbox {
    fn start(slot: u32) -> Self {
        let mut child = Command::new("unshare")
            .args(["-U", "-n", "--map-root-user", "sh", "-c", "echo; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let netns = netns::of(child.id()).unwrap();
        Self { child, netns, slot }
    }
    fn pidfd(&self) -> OwnedFd {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn within<T>(target: &OwnedFd, home: &OwnedFd, work: impl FnOnce() -> T) -> T {
    netns::within(target.as_fd(), home.as_fd(), work).unwrap()
}

fn empty_netns() -> OwnedFd {
    netns::fresh().unwrap()
}

#[track_caller]
fn ip(arguments: &str) {
    let done = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn flows_from(source: Ipv4Addr) -> Vec<linux::conntrack::Flow> {
    let firewall = Socket::open(Family::Netfilter).unwrap();
    let mut flows = Vec::new();
    linux::conntrack::flows(&firewall, Some(source), |flow| flows.push(flow)).unwrap();
    flows
}

/// Echoes. The thread ends with the test's process.
fn serve_tcp(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

fn serve_udp(address: &str) {
    serve_udp_if(address, |_| true);
}
fn serve_udp_if(address: &str, answers: impl Fn(SocketAddr) -> bool + Send + 'static) {
    let socket = UdpSocket::bind(address).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if answers(from) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        }
    });
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"hello")?;
    let mut buffer = [0; 5];
    stream.read_exact(&mut buffer)?;
    assert_eq!(&buffer, b"hello");
    Ok(())
}

#[track_caller]
#[expect(
    clippy::disallowed_methods,
    reason = "the kernel does not say when it is done"
)]
fn eventually<T>(mut attempt: impl FnMut() -> io::Result<T>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if start.elapsed() > PATIENCE => panic!("still: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn none_of<T: std::fmt::Debug>(left: &[T]) -> io::Result<()> {
    if left.is_empty() {
        Ok(())
    } else {
        Err(io::Error::other(format!("{left:?}")))
    }
}

fn open() -> NetworkPolicy {
    NetworkPolicy::default()
}
fn policy(allow: &[&str], deny: &[&str]) -> NetworkPolicy {
    let list = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
    NetworkPolicy {
        allow: list(allow),
        deny: list(deny),
        ..open()
    }
}

#[test]
fn by_default_the_internet_is_reached_and_nothing_near() {
    in_world(|world| {
        let net = world.net(&[]);
        let sandbox = world.claimed(&net, 0, &open());
        world.reaches(&sandbox, OUTSIDE);
        world.reaches(&sandbox, OTHER);
        for address in PRIVATE.into_iter().chain(HOST).chain([GATEWAY]) {
            world.reaches_not(&sandbox, address);
        }
        for address in [
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(203, 0, 113, 255),
            Ipv4Addr::new(224, 0, 0, 1),
        ] {
            assert!(world.udp(&sandbox, address, 9999).is_err(), "{address}");
        }
    });
}

#[test]
fn a_slot_that_nobody_claimed_reaches_nothing() {
    in_world(|world| {
        let net = world.net(&[PRIVATE[0]]);
        let sandbox = world.sandbox(&net, 3);
        for address in [OUTSIDE, PRIVATE[0], HOST[0], GATEWAY] {
            world.reaches_not(&sandbox, address);
        }
        assert!(world.udp(&sandbox, GATEWAY, 53).is_err());
        net.claim(3, &open()).unwrap();
        world.reaches(&sandbox, OUTSIDE);
        net.release(3).unwrap();
        world.reaches_not(&sandbox, OUTSIDE);
        // Again is no error.
        net.release(3).unwrap();
    });
}

#[test]
fn neighbours_do_not_reach_each_other_whatever_they_allow() {
    in_world(|world| {
        let net = world.net(&[]);
        let everything = policy(&["0.0.0.0/0"], &[]);
        let (one, two) = (
            world.claimed(&net, 1, &everything),
            world.claimed(&net, 2, &everything),
        );
        within(&two.netns, &world.home, || {
            serve_tcp("0.0.0.0:80");
            serve_udp("0.0.0.0:9999");
        });
        world.reaches(&one, OUTSIDE);
        world.reaches_not(&one, net.address(2));
        world.reaches_not(&one, PRIVATE[0]);
        // Nor does the outside, by way of the host.
        world.out("route add 10.64.0.0/10 via 203.0.113.1");
        let from_outside = within(&world.outside, &world.home, || {
            TcpStream::connect_timeout(&SocketAddr::new(net.address(2).into(), 80), SILENCE)
        });
        assert!(from_outside.is_err());
    });
}

#[test]
fn allow_beats_deny() {
    in_world(|world| {
        let net = world.net(&[]);
        let sandbox = world.claimed(&net, 0, &policy(&["203.0.113.10"], &["0.0.0.0/0"]));
        world.reaches(&sandbox, OUTSIDE);
        world.reaches_not(&sandbox, OTHER);
        net.set_policy(0, &policy(&[], &["203.0.113.11/32"])).unwrap();
        world.reaches(&sandbox, OUTSIDE);
        world.reaches_not(&sandbox, OTHER);
        net.set_policy(0, &policy(&["203.0.113.11"], &["203.0.113.0/24"]))
            .unwrap();
        world.reaches_not(&sandbox, OUTSIDE);
        world.reaches(&sandbox, OTHER);
        let none = NetworkPolicy {
            internet: Some(false),
            ..open()
        };
        net.set_policy(0, &none).unwrap();
        world.reaches_not(&sandbox, OUTSIDE);
        net.set_policy(0, &open()).unwrap();
        world.reaches(&sandbox, OTHER);
    });
}

#[test]
fn long_lists_are_taken_whole() {
    in_world(|world| {
        let net = world.net(&[]);
        let many: Vec<String> = (0..5_000_u32)
            .map(|i| Ipv4Addr::from(0x0800_0000 + 2 * i).to_string())
            .collect();
        let mut deny: Vec<&str> = many.iter().map(String::as_str).collect();
        deny.push("203.0.113.11");
        let sandbox = world.claimed(&net, 0, &policy(&[], &deny));
        world.reaches(&sandbox, OUTSIDE);
        world.reaches_not(&sandbox, OTHER);
    });
}

#[test]
fn a_new_policy_cuts_what_it_forbids_and_nothing_else() {
    in_world(|world| {
        let net = world.net(&[]);
        let sandbox = world.claimed(&net, 0, &open());
        let mut cut = world.connect(&sandbox, OUTSIDE, 80).unwrap();
        let mut kept = world.connect(&sandbox, OTHER, 80).unwrap();
        echo(&mut cut).unwrap();
        echo(&mut kept).unwrap();
        net.set_policy(0, &policy(&[], &["203.0.113.10"])).unwrap();
        let left = flows_from(net.address(0));
        assert!(
            left.iter().all(|flow| flow.destination == OTHER) && !left.is_empty(),
            "{left:?}"
        );
        let error = echo(&mut cut).unwrap_err();
        let heard = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(heard.contains(&error.kind()), "it hears of it at once: {error}");
        echo(&mut kept).unwrap();
    });
}

#[test]
fn names_are_resolved_by_the_hosts_server_and_only_there() {
    in_world(|world| {
        // A private server, as most hosts have.
        let net = world.net(&[PRIVATE[0], OTHER]);
        assert_eq!(net.nameservers().len(), 2);
        within(&world.outside, &world.home, || serve_tcp("0.0.0.0:53"));
        let sandbox = world.claimed(&net, 0, &open());
        for server in net.nameservers() {
            world.udp(&sandbox, server, 53).unwrap();
            echo(&mut world.connect(&sandbox, server, 53).unwrap()).unwrap();
            assert!(world.connect(&sandbox, server, 80).is_err());
        }
        assert!(world.udp(&sandbox, PRIVATE[0], 53).is_err());
        assert!(world.udp(&sandbox, PRIVATE[1], 53).is_err());

        let mut asked = world.connect(&sandbox, GATEWAY, 53).unwrap();
        echo(&mut asked).unwrap();
        net.set_policy(0, &policy(&[], &["0.0.0.0/0"])).unwrap();
        assert!(world.udp(&sandbox, GATEWAY, 53).is_err());
        assert!(echo(&mut asked).is_err());
        net.set_policy(0, &policy(&["203.0.113.11"], &["0.0.0.0/0"]))
            .unwrap();
        world.udp(&sandbox, GATEWAY, 53).unwrap();
    });
}

#[test]
fn a_name_server_on_the_hosts_loopback_answers() {
    in_world(|world| {
        let stub = Ipv4Addr::new(127, 0, 0, 53);
        // As systemd-resolved has it.
        serve_udp_if("127.0.0.53:53", |from| from.ip().is_loopback());
        serve_udp("127.0.0.1:9999");
        serve_tcp("127.0.0.1:80");
        let net = world.net(&[stub]);
        let sandbox = world.claimed(&net, 0, &open());
        world.udp(&sandbox, GATEWAY, 53).unwrap();
        world.reaches(&sandbox, OUTSIDE);
        // Where the kernel sends packets for 127.0.0.0/8 out, they still arrive nowhere.
        within(&sandbox.netns, &world.home, || {
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
            ip("addr del 127.0.0.1/8 dev lo");
            ip("route add 127.0.0.0/8 via 169.254.53.1 dev eth0 onlink");
        });
        world.reaches_not(&sandbox, Ipv4Addr::LOCALHOST);
        assert!(world.udp(&sandbox, stub, 53).is_err());
    });
}

#[test]
fn there_is_no_ipv6() {
    in_world(|world| {
        let there: Ipv6Addr = "2001:db8::10".parse().unwrap();
        ip("addr add 2001:db8::1/64 dev up0 nodad");
        world.out("addr add 2001:db8::10/64 dev out0 nodad");
        world.out("route add default via 2001:db8::1");
        within(&world.outside, &world.home, || serve_tcp("[::]:81"));
        serve_tcp("[::]:8081");
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        eventually(|| TcpStream::connect((there, 81)));

        let net = world.net(&[]);
        let sandbox = world.claimed(&net, 0, &policy(&["::/0"], &[]));
        let connect = |to: Ipv6Addr, port| {
            within(&sandbox.netns, &world.home, || {
                TcpStream::connect_timeout(&SocketAddr::new(to.into(), port), SILENCE)
            })
        };
        assert!(connect(there, 81).is_err());
        // Not even if the sandbox had an address and the host a route to it.
        within(&sandbox.netns, &world.home, || {
            ip("addr add fd00::2/64 dev eth0 nodad");
            ip("neigh add fd00::1 lladdr 02:00:00:00:00:01 dev eth0");
            let (mac, _) = net.plan.macs(0);
            let mac = mac.map(|b| format!("{b:02x}")).join(":");
            ip(&format!("neigh replace fd00::1 lladdr {mac} dev eth0"));
            ip("route add default via fd00::1 dev eth0");
        });
        ip("addr add fd00::1/64 dev at77-0 nodad");
        assert!(connect(there, 81).is_err());
        assert!(connect("fd00::1".parse().unwrap(), 8081).is_err());
    });
}

#[test]
fn a_forged_source_gets_nowhere() {
    in_world(|world| {
        let net = world.net(&[]);
        let sandbox = world.claimed(&net, 0, &open());
        let _other = world.claimed(&net, 1, &open());
        for forged in [net.address(1), HOST[0], Ipv4Addr::new(8, 8, 8, 8)] {
            let socket = within(&sandbox.netns, &world.home, || {
                ip(&format!("addr add {forged}/32 dev eth0"));
                UdpSocket::bind((forged, 0)).unwrap()
            });
            socket.send_to(b"forged", (OUTSIDE, 9999)).unwrap();
        }
        for forged in [net.address(1), HOST[0], Ipv4Addr::new(8, 8, 8, 8)] {
            let flows = flows_from(forged);
            assert!(
                flows
                    .iter()
                    .all(|f| forged == HOST[0] || f.destination != OUTSIDE),
                "{flows:?}"
            );
        }
        world.reaches(&sandbox, OUTSIDE);
    });
}

#[test]
fn adopted_sandboxes_keep_their_flows_and_others_lose_them() {
    in_world(|world| {
        let net = world.net(&[]);
        let adopted = world.claimed(&net, 0, &open());
        let orphan = world.claimed(&net, 5, &open());
        let mut kept = world.connect(&adopted, OUTSIDE, 80).unwrap();
        let mut lost = world.connect(&orphan, OUTSIDE, 80).unwrap();
        echo(&mut kept).unwrap();
        echo(&mut lost).unwrap();
        drop(net);
        echo(&mut kept).unwrap();

        let net = world.again(&[], &[(0, policy(&[], &["203.0.113.11"]))]);
        echo(&mut kept).unwrap();
        assert!(echo(&mut lost).is_err());
        world.reaches_not(&adopted, OTHER);
        assert_eq!(net.leftovers().unwrap(), [5]);
        ip("link add at770-1 type veth peer name other0");
        assert_eq!(net.sweep().unwrap(), 1);
        assert!(net.is_free(5).unwrap() && !net.is_free(0).unwrap());
        ip("link show at770-1");
        assert_eq!(orphan.slot, 5);
    });
}

#[test]
fn a_slot_is_free_when_its_namespace_is_gone() {
    in_world(|world| {
        let net = world.net(&[]);
        let first = world.claimed(&net, 0, &open());
        let second = Sandbox::start(0);
        let busy = net.attach(0, second.pidfd().as_fd()).unwrap_err();
        assert_eq!(busy.source.raw_os_error(), Some(libc::EEXIST));
        world.reaches(&first, OUTSIDE);
        drop(first);
        net.release(0).unwrap();
        eventually(|| {
            if net.is_free(0).unwrap() {
                Ok(())
            } else {
                Err(io::ErrorKind::ResourceBusy.into())
            }
        });
        eventually(|| none_of(&flows_from(net.address(0))));
        net.attach(0, second.pidfd().as_fd()).unwrap();
        net.claim(0, &open()).unwrap();
        world.reaches(&second, OUTSIDE);
    });
}

#[test]
fn the_host_forwards_for_sandboxes_only() {
    in_world(|world| {
        // A network behind the host that the outside has no business with, though it knows the way.
        let inner = empty_netns();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&inner);
        ip(&format!(
            "link add in0 type veth peer name in1 netns /proc/{}/fd/{fd}",
            std::process::id()
        ));
        ip("addr add 198.51.100.1/24 dev in0");
        ip("link set in0 up");
        within(&inner, &world.home, || {
            ip("addr add 198.51.100.10/24 dev in1");
            ip("link set in1 up");
            ip("route add default via 198.51.100.1");
            serve_tcp("0.0.0.0:80");
        });
        world.out("route add 198.51.100.0/24 via 203.0.113.1");
        let inside = SocketAddr::from(([198, 51, 100, 10], 80));
        let knock = || {
            within(&world.outside, &world.home, || {
                TcpStream::connect_timeout(&inside, SILENCE)
            })
        };
        eventually(|| TcpStream::connect(inside));
        let forwarding = |link: &str| {
            let path = format!("/proc/sys/net/ipv4/conf/{link}/forwarding");
            std::fs::read_to_string(path).unwrap().trim() == "1"
        };
        assert!(!forwarding("up0") && knock().is_err());

        let net = world.net(&[]);
        let sandbox = world.claimed(&net, 0, &open());
        assert!(forwarding("up0") && knock().is_err());
        world.reaches(&sandbox, OUTSIDE);
        // What comes later is guarded too.
        world.link("up1", "out1");
        ip("addr add 198.51.101.1/24 dev up1");
        world.out("addr add 198.51.101.10/24 dev out1");
        let late = Ipv4Addr::new(198, 51, 101, 10);
        eventually(|| echo(&mut world.connect(&sandbox, late, 80)?));
        drop(net);
        let net = world.again(&[], &[(0, open())]);
        assert!(knock().is_err(), "the guard outlives the daemon's run");

        // Whoever makes the host a router has one.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        eventually(knock);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        eventually(|| {
            if forwarding("up0") {
                Ok(())
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            }
        });
        assert!(knock().is_err());

        net.release(0).unwrap();
        net.close().unwrap();
        assert!(!forwarding("up0") && !forwarding("up1") && knock().is_err());
        let firewall = Socket::open(Family::Netfilter).unwrap();
        assert_eq!(nft::keys(&firewall, "atoll77", table::UPLINKS).unwrap(), None);
    });
}

#[test]
fn a_flood_of_flows_ends_at_its_bound() {
    in_world(|world| {
        let net = world.net(&[]);
        let sandbox = world.claimed(&net, 0, &open());
        let start = Instant::now();
        let socket = within(&sandbox.netns, &world.home, || {
            UdpSocket::bind("0.0.0.0:0").unwrap()
        });
        for port in 10_000..14_000_u16 {
            let _ = socket.send_to(b"x", (OUTSIDE, port));
        }
        let flows = flows_from(net.address(0)).len() as u64;
        let most = u64::from(FLOWS_BURST_MAX) + FLOWS_PER_SECOND_MAX * (start.elapsed().as_secs() + 1);
        assert!((100..=most).contains(&flows), "{flows} of at most {most}");
        let neighbour = world.claimed(&net, 1, &open());
        world.reaches(&neighbour, OUTSIDE);
    });
}

#[test]
fn ports_inside_are_dialled_on_either_loopback() {
    in_world(|world| {
        let net = world.net(&[]);
        let sandbox = world.sandbox(&net, 0);
        within(&sandbox.netns, &world.home, || {
            serve_tcp("127.0.0.1:8001");
            serve_tcp("[::1]:8002");
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let dial = |port| {
            let stream = runtime.block_on(net.dial(sandbox.pidfd().as_fd(), port))?;
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            Ok::<_, io::Error>(stream)
        };
        for port in [8001, 8002] {
            echo(&mut dial(port).unwrap()).unwrap();
        }
        assert_eq!(dial(8003).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        // And not one of the host's own.
        assert_eq!(dial(PORT).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn unprivileged_users_inside_may_listen_on_low_ports() {
    in_world(|world| {
        let net = world.net(&[]);
        let sandbox = world.sandbox(&net, 0);
        let read = |path| {
            within(&sandbox.netns, &world.home, || {
                std::fs::read_to_string(path).unwrap()
            })
        };
        assert_eq!(read("/proc/sys/net/ipv4/ip_unprivileged_port_start").trim(), "0");
        assert!(read("/proc/sys/net/ipv4/ping_group_range").contains("2147483647"));
        assert_ne!(
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
                .unwrap()
                .trim(),
            "0",
            "the host's stays"
        );
    });
}

#[test]
fn this_machine_lacks_nothing_that_matters() {
    in_world(|_| {
        let fatal: Vec<String> = probe()
            .iter()
            .filter(|l| l.is_fatal())
            .map(ToString::to_string)
            .collect();
        assert!(fatal.is_empty(), "{fatal:?}");
        let firewall = Socket::open(Family::Netfilter).unwrap();
        assert_eq!(nft::keys(&firewall, "atoll-probe", table::UPLINKS).unwrap(), None);
    });
}

#[test]
fn numbers_without_a_name_are_refused() {
    in_world(|world| {
        let net = world.net(&[]);
        assert!(net.claim(SLOTS_MAX, &open()).is_err());
        assert!(Net::open_with(INSTANCE_MAX + 1, Vec::new(), &[]).is_err());
    });
}

#[test]
fn a_guest_reaches_what_its_policy_allows_and_nothing_near() {
    in_world(|world| {
        let net = world.net(&[PRIVATE[0]]);
        let (guest, namespace) = world.guest(&net, 0, &open());
        eventually(|| world.connect(&guest, OUTSIDE, 80));
        world.reaches(&guest, OUTSIDE);
        world.reaches(&guest, OTHER);
        world.udp(&guest, net.nameservers()[0], 53).unwrap();
        for address in PRIVATE
            .into_iter()
            .chain(HOST)
            .chain([GATEWAY, GUEST_GATEWAY, net.address(0)])
        {
            world.reaches_not(&guest, address);
        }
        let other = world.claimed(&net, 1, &policy(&["0.0.0.0/0"], &[]));
        let (neighbour, _) = world.guest(&net, 2, &policy(&["0.0.0.0/0"], &[]));
        within(&other.netns, &world.home, || serve_tcp("0.0.0.0:80"));
        within(&neighbour.netns, &world.home, || serve_tcp("0.0.0.0:80"));
        world.reaches_not(&guest, net.address(1));
        world.reaches_not(&guest, net.address(2));
        world.reaches_not(&other, net.address(2));
        world.reaches_not(&other, GUEST);

        let mut cut = world.connect(&guest, OUTSIDE, 80).unwrap();
        let mut kept = world.connect(&guest, OTHER, 80).unwrap();
        echo(&mut cut).unwrap();
        echo(&mut kept).unwrap();
        net.set_policy(0, &policy(&[], &["203.0.113.10"])).unwrap();
        let error = echo(&mut cut).unwrap_err();
        let heard = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(heard.contains(&error.kind()), "it hears of it at once: {error}");
        echo(&mut kept).unwrap();
        let none = NetworkPolicy {
            internet: Some(false),
            ..open()
        };
        net.set_policy(0, &none).unwrap();
        world.reaches_not(&guest, OTHER);
        assert!(world.udp(&guest, net.nameservers()[0], 53).is_err());
        net.release(0).unwrap();
        world.reaches_not(&guest, OTHER);

        // Whoever holds nothing of it but a place in it does not keep its link.
        drop((guest, namespace));
        eventually(|| {
            if net.is_free(0).unwrap() {
                Ok(())
            } else {
                Err(io::ErrorKind::ResourceBusy.into())
            }
        });
        let (again, _) = world.guest(&net, 0, &open());
        eventually(|| world.connect(&again, OUTSIDE, 80));
        world.reaches(&again, OUTSIDE);
    });
}

#[test]
fn a_guest_that_nobody_claimed_reaches_nothing_and_one_that_is_adopted_goes_on() {
    in_world(|world| {
        let net = world.net(&[]);
        let (_, tap) = net.attach_tap(4).unwrap();
        let guest = Guest::start(world, tap);
        world.reaches_not(&guest, OUTSIDE);
        net.claim(4, &open()).unwrap();
        eventually(|| world.connect(&guest, OUTSIDE, 80));
        let mut kept = world.connect(&guest, OUTSIDE, 80).unwrap();
        echo(&mut kept).unwrap();
        drop(net);
        let net = world.again(&[], &[(4, open())]);
        echo(&mut kept).unwrap();
        world.reaches(&guest, OUTSIDE);
        assert_eq!(
            net.attach_tap(4).unwrap_err().source.raw_os_error(),
            Some(libc::EEXIST)
        );
    });
}

/// What a guest's driver could write: a header of no offload, then a frame.
fn frame(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&[0; 10][..], &to, &GUEST_MAC, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 packet of UDP, to port 9999.
fn datagram(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut header = [0x45, 0, 0, 29, 0, 1, 0, 0, 64, 17, 0, 0].to_vec();
    header.extend(from.octets());
    header.extend(to.octets());
    let mut sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&u16::try_from(!sum & 0xffff).unwrap().to_be_bytes());
    [&header[..], &[0x30, 0x39, 0x27, 0x0f, 0, 9, 0, 0], b"x"].concat()
}

#[test]
fn whatever_a_guest_writes_it_speaks_for_itself_alone() {
    in_world(|world| {
        let net = world.net(&[]);
        let (_, tap) = net.attach_tap(0).unwrap();
        net.claim(0, &open()).unwrap();
        let mut wire = std::fs::File::from(tap.file);
        let router = [0x06, 0, 172, 16, 0, 1];
        let forged = [
            net.address(0),
            net.address(1),
            HOST[0],
            GUEST_GATEWAY,
            Ipv4Addr::new(8, 8, 8, 8),
        ];
        for from in forged {
            wire.write_all(&frame(router, 0x0800, &datagram(from, OUTSIDE)))
                .unwrap();
        }
        // IPv6, and what is no protocol at all.
        wire.write_all(&frame(router, 0x86dd, &[0x60; 60])).unwrap();
        wire.write_all(&frame(router, 0x1234, &[0xff; 60])).unwrap();
        wire.write_all(&[0; 3]).unwrap_err();
        // Questions, each of another who wants to be remembered, and answers that nobody asked for.
        for number in 0..1000_u32 {
            let who = Ipv4Addr::from(0x0909_0000 + number);
            for (what, from, to) in [
                (1, who, GUEST_GATEWAY),
                (1, who, net.address(0)),
                (2, who, GUEST_GATEWAY),
                (2, GUEST, GUEST_GATEWAY),
            ] {
                let mut question = vec![0, 1, 8, 0, 6, 4, 0, what, 2, 2, 2, 2, 2, 2];
                question.extend(from.octets());
                question.extend([0; 6]);
                question.extend(to.octets());
                wire.write_all(&frame([0xff; 6], 0x0806, &question)).unwrap();
            }
        }
        let (known, tracked) = within(&tap.namespace, &world.home, || {
            let said = Command::new("ip")
                .args(["neigh", "show", "dev", "tap0"])
                .output()
                .unwrap();
            let tracked: Vec<_> = forged.into_iter().flat_map(flows_from).collect();
            (String::from_utf8(said.stdout).unwrap(), tracked)
        });
        assert_eq!(known.trim(), "172.16.0.2 lladdr 06:00:ac:10:00:02 PERMANENT");
        assert!(tracked.is_empty(), "{tracked:?}");
        assert!(flows_from(net.address(0)).is_empty());
        // The same, honestly.
        wire.write_all(&frame(router, 0x0800, &datagram(GUEST, OUTSIDE)))
            .unwrap();
        eventually(|| {
            flows_from(net.address(0))
                .first()
                .map(drop)
                .ok_or(io::ErrorKind::NotFound.into())
        });
        drop(wire);
    });
}
