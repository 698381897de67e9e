//! `cargo xtask test`: every ring of the test suite, and one closing line.
//!
//! ```text
//! check    fmt, clippy (which builds everything that is tested), tidy, generated files, licences
//! rust     unit, contract, whole-house and runtime tests (root: the real container runtime)
//! python   official Python SDK (sync, async), code that users write, and @e2b/cli, against a running Atoll
//! js       official JavaScript SDK
//! contract made-up requests to every operation of the served OpenAPI: no 5xx, nothing undescribed
//! tls      both SDKs and @e2b/cli on their ways to a sandbox, by E2B_DOMAIN alone: TLS, wildcard hosts
//! cluster  a whole fleet: PostgreSQL, Redis, Consul, two of each role, three nodes; the SDKs, and what dies
//! microvms the same with virtual machines as sandboxes: what their runtime does differently
//! settings houses with settings of their own: traces, metrics, quotas
//! crash    kill -9 at every step, restart, leaks, floods
//! escape   code in a sandbox that means harm, canaries around it
//! bench    every figure of the benchmark, in short: that it can be had, not what it is
//! firecracker the real Firecracker in an emulated machine; by --only alone, and where ATOLL_FIRECRACKER names it
//! ```
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::build::{Build, for_tests};
use crate::fleet::Fleet;
use crate::house::House;
use crate::shell::{cache, command, read, root};
use crate::tally::{self, Tally};
use crate::{bench, check, clients, criu, kernel, nested, services, setup};

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Only these rings; all, in this order, when none is given.
    #[arg(long, value_enum)]
    only: Vec<Ring>,
    /// Runs all tests of the SDKs against virtual machines too, which takes more than half an hour where they are emulated.
    #[arg(long)]
    whole: bool,
    /// Only the ring `cluster`.
    #[arg(long)]
    cluster: bool,
    /// Runs Atoll as it is released, not as its tests are built: slower to build, and what users have.
    #[arg(long)]
    release: bool,
}

impl Options {
    /// What is run.
    fn build(&self) -> Build {
        match self.release {
            true => Build::Released,
            false => Build::Tested,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ring {
    Check,
    Rust,
    Python,
    Js,
    Contract,
    Tls,
    Cluster,
    Microvms,
    Settings,
    Crash,
    Escape,
    Bench,
    Firecracker,
}

impl Ring {
    fn has_clients(&self) -> bool {
        !matches!(self, Ring::Check | Ring::Rust)
    }

    /// Whether Consul and its like are started in it.
    fn has_services(&self) -> bool {
        matches!(self, Ring::Rust | Ring::Cluster)
    }
}

const ALL: [Ring; 12] = [
    Ring::Check,
    Ring::Rust,
    Ring::Python,
    Ring::Js,
    Ring::Contract,
    Ring::Tls,
    Ring::Cluster,
    Ring::Microvms,
    Ring::Settings,
    Ring::Crash,
    Ring::Escape,
    Ring::Bench,
];

/// Tests of the SDKs that virtual machines are held to each time: all of them take too long where the processor is emulated.
/// `cargo xtask test --only microvms --whole` runs them all.
const MICROVM_MODULES: [&str; 2] = ["lifecycle", "volumes"];
/// Attempts to get out that both kinds of sandboxes are held to, and that take no longer in the one than in the other.
const MICROVM_ESCAPES: [&str; 3] = [
    "tests/e2e/escape/test_network.py",
    "-k",
    "test_9 or test_10 or test_11",
];
/// Two files at a time: most tests of the SDKs wait for something that is not the processor.
const BESIDE: [&str; 4] = ["-n", "2", "--dist", "loadfile"];
/// All tests of the SDKs.
const SDK_TESTS: [&str; 5] = ["tests/e2e/python", BESIDE[0], BESIDE[1], BESIDE[2], BESIDE[3]];
/// Tests of the SDKs in which it matters by which names and lines a sandbox is reached.
const TLS_MODULES: [&str; 10] = [
    "async",
    "commands",
    "e2b_cli",
    "files",
    "lifecycle",
    "network",
    "ports",
    "pty",
    "sandbox",
    "volumes",
];
/// Tests of the crash ring beside which nothing else has its time.
const ALONE: [&str; 2] = ["tests/e2e/crash/test_floods.py", "tests/e2e/crash/test_leaks.py"];
/// Where names below `localhost` lead, whoever is asked (RFC 6761, section 6.3).
const TLS_ADDRESS: &str = "127.0.0.1";
/// Where the test's own resolver listens: a loopback address that nothing else listens on.
const RESOLVER_ADDRESS: &str = "127.0.0.2";

/// Runs the rings and prints the closing line; a failed test is an error after everything has run.
pub(crate) fn run(options: &Options) -> Result<()> {
    let rings = if options.cluster {
        &[Ring::Cluster][..]
    } else if options.only.is_empty() {
        &ALL[..]
    } else {
        &options.only
    };
    setup::to_test()?;
    if rings.iter().any(Ring::has_clients) {
        // Before anything is built: without them most of it could not be tested.
        clients::python()?;
        clients::javascript()?;
    }
    let mut total = Tally::default();
    let mut faults = Vec::new();
    // Beside the first ring, which waits for others at times.
    let mut services = rings
        .iter()
        .any(Ring::has_services)
        .then(|| std::thread::spawn(services::have));
    for &ring in rings {
        if let Some(building) = services.take_if(|_| ring.has_services()) {
            // What could not be had was told, and whoever needs it says so.
            let _ = building.join();
        }
        let began = Instant::now();
        let outcome = one(ring, options);
        let name = ring.to_possible_value().map(|value| value.get_name().to_owned());
        eprintln!(
            "test: {} took {} s",
            name.unwrap_or_default(),
            began.elapsed().as_secs()
        );
        match outcome {
            Ok(tally) => total += tally,
            Err(fault) => {
                eprintln!("test: {fault:#}");
                total.failed += 1;
                faults.push(fault);
            }
        }
    }
    println!("{total}");
    if total.failed > 0 {
        bail!("the test suite failed");
    }
    Ok(())
}

fn one(ring: Ring, options: &Options) -> Result<Tally> {
    let build = options.build();
    match ring {
        Ring::Check => check::run(),
        Ring::Rust => rust(build),
        Ring::Python => with_house(build, "python", &[], |env| python(&SDK_TESTS, env)),
        Ring::Js => with_house(build, "js", &[], javascript),
        Ring::Contract => with_house(build, "contract", &[], contract),
        Ring::Tls => tls(build),
        Ring::Cluster => cluster(build),
        Ring::Microvms => microvms(build, options.whole),
        Ring::Settings => own_houses(build, &["tests/e2e/settings", "-n", "2"]),
        Ring::Crash => {
            // Houses beside each other, but for those that keep the whole machine busy.
            let mut beside = vec!["tests/e2e/crash", "-n", "2"];
            beside.extend(ALONE.iter().flat_map(|alone| ["--ignore", *alone]));
            let mut total = own_houses(build, &beside)?;
            total += own_houses(build, &ALONE)?;
            Ok(total)
        }
        Ring::Escape => escape(build),
        Ring::Firecracker => nested::run(python),
        Ring::Bench => {
            // The parts that take no registry and no large disk, and of a fleet those for which nothing else is built.
            in_short(build, &[], &["floor", "sandboxes", "python", "traffic", "memory"])?;
            in_short(build, &["cluster"], &["creates", "routes", "burst"])?;
            Ok(Tally {
                passed: 2,
                ..Tally::default()
            })
        }
    }
}

/// Some parts of a table of the benchmark, in short.
fn in_short(build: Build, table: &[&str], parts: &[&str]) -> Result<()> {
    let mut words = table.to_vec();
    words.push("--short");
    words.extend(parts.iter().flat_map(|part| ["--only", *part]));
    let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    bench::run(&words, build)
}

fn rust(build: Build) -> Result<Tally> {
    // The container runtime's tests run the static programs themselves.
    let atoll = build.atoll()?;
    let bin = atoll.parent().context("a program lies in a directory")?;
    let mut tests = for_tests("test");
    tests
        .arg("--no-fail-fast")
        // No documentation has examples to run, and asking for them costs a run of rustdoc for each crate.
        .args(["--lib", "--bins", "--tests", "--examples"])
        .env("ATOLL_TEST_BIN_DIR", bin);
    if let Some(criu) = criu::have() {
        tests.env("ATOLL_TEST_CRIU", criu);
    }
    if let Some(kernel) = kernel::have() {
        tests
            .env("ATOLL_TEST_GUEST_KERNEL", &kernel)
            .env("ATOLL_TEST_GUEST_BIN", bin)
            .env("ATOLL_TEST_GUEST", guest(&atoll, &kernel)?);
    }
    run_and_count("rust", &mut tests, tally::of_cargo)
}

/// What guests of the tests boot from.
fn guest(atoll: &Path, kernel: &Path) -> Result<String> {
    let mut make = command(atoll);
    make.args(["guest", "build", "--kernel"])
        .arg(kernel)
        .arg("--out")
        .arg(cache().join("guest"));
    Ok(read(&mut make)?.trim().to_owned())
}

fn with_house(
    build: Build,
    name: &str,
    more: &[(&str, String)],
    tests: impl FnOnce(&BTreeMap<String, String>) -> Result<Tally>,
) -> Result<Tally> {
    let house = House::start(&build.atoll()?, name, more)?;
    let outcome = tests(&house.env());
    house.down()?;
    outcome
}

/// Tests that start daemons of their own, some of which die where they are told to.
fn own_houses(build: Build, tests: &[&str]) -> Result<Tally> {
    let programs = [
        ("ATOLL_BIN", build.atoll()?),
        ("ATOLL_FAILPOINTS_BIN", Build::Tested.atoll()?),
    ];
    let env = programs.map(|(name, path)| (name.to_owned(), path.display().to_string()));
    python(tests, &BTreeMap::from(env))
}

fn python(dirs: &[&str], env: &BTreeMap<String, String>) -> Result<Tally> {
    let mut tests = pytest(dirs, env)?;
    run_and_count("python", &mut tests, tally::of_pytest)
}

fn pytest(dirs: &[&str], env: &BTreeMap<String, String>) -> Result<Command> {
    let mut tests = command(clients::python()?);
    tests
        .args(["-m", "pytest", "-ra", "-p", "no:cacheprovider"])
        .args(dirs)
        .envs(env);
    if let Some(criu) = criu::have() {
        // Of daemons that the tests start themselves.
        tests.env("ATOLL_CRIU", criu);
    }
    tests
        .env("ATOLL_JS", clients::javascript()?)
        .env("ATOLL_NODE", clients::node()?);
    Ok(tests)
}

/// Its tools have an environment of their own: they and the SDK's tests want different versions of the same things.
fn contract(env: &BTreeMap<String, String>) -> Result<Tally> {
    let mut tests = command(clients::contract()?);
    tests
        .args([
            "-m",
            "pytest",
            "-ra",
            "-p",
            "no:cacheprovider",
            "tests/e2e/contract",
        ])
        .envs(env);
    run_and_count("contract", &mut tests, tally::of_pytest)
}

fn javascript(env: &BTreeMap<String, String>) -> Result<Tally> {
    run_and_count("js", &mut node_test(env)?, tally::of_node)
}

fn node_test(env: &BTreeMap<String, String>) -> Result<Command> {
    let modules = clients::javascript()?;
    let tests = modules.join("tests");
    copy_into(&root().join("tests/e2e/js"), &tests)?;
    let mut run = command(clients::node()?);
    run.args(["--test", "--test-reporter=tap", "--test-concurrency=1"])
        .arg(tests)
        .envs(env);
    Ok(run)
}

/// Node looks for `node_modules` beside the tests, not where they were copied from.
fn copy_into(from: &Path, to: &Path) -> Result<()> {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)?
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "mjs"))
    {
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The SDKs with nothing but `E2B_DOMAIN`: names below the domain resolve to the house by a resolver of the test's
/// own, in a mount namespace in which `/etc/resolv.conf` names it.
fn tls(build: Build) -> Result<Tally> {
    if !setup::is_root() {
        eprintln!("SKIPPED: the TLS ring binds port 443 and a resolver: run it as root");
        return Ok(Tally {
            skipped: 1,
            ..Tally::default()
        });
    }
    let listen = [("ATOLL_TLS_LISTEN", format!("{TLS_ADDRESS}:443"))];
    with_house(build, "tls", &listen, |env| {
        let mut env = env.clone();
        for direct in ["E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL"] {
            env.remove(direct);
        }
        env.insert("E2B_DOMAIN".into(), "atoll.localhost".into());
        env.insert("ATOLL_RESOLVER_ADDRESS".into(), RESOLVER_ADDRESS.into());
        let modules = TLS_MODULES.map(|module| format!("tests/e2e/python/test_{module}.py"));
        let mut tests = vec!["tests/e2e/tls"];
        tests.extend(modules.iter().map(String::as_str));
        tests.extend(BESIDE);
        let python = pytest(&tests, &env)?;
        let mut total = run_and_count("tls", &mut with_resolver(&python), tally::of_pytest)?;
        total += run_and_count("tls js", &mut with_resolver(&node_test(&env)?), tally::of_node)?;
        Ok(total)
    })
}

/// The SDKs against a whole fleet, and what becomes of it when parts of it die.
fn cluster(build: Build) -> Result<Tally> {
    if !setup::is_root() {
        eprintln!("SKIPPED: the cluster ring makes network namespaces: run it as root");
        return Ok(Tally {
            skipped: 1,
            ..Tally::default()
        });
    }
    let mut total = services::check_jobs(services::have())?;
    let fleet = Fleet::start(&build.atoll()?, &services::consul()?)?;
    total += python(&SDK_TESTS, fleet.env())?;
    total += javascript(fleet.env())?;
    total += python(&["tests/e2e/cluster"], fleet.env())?;
    fleet.down()?;
    Ok(total)
}

/// The SDKs against sandboxes that are virtual machines.
fn microvms(build: Build, whole: bool) -> Result<Tally> {
    let Some(kernel) = kernel::have() else {
        return Ok(Tally {
            skipped: 1,
            ..Tally::default()
        });
    };
    let more = [
        ("ATOLL_RUNTIME", "qemu".to_owned()),
        ("ATOLL_GUEST_KERNEL", kernel.display().to_string()),
        (
            "ATOLL_FAILPOINTS_BIN",
            Build::Tested.atoll()?.display().to_string(),
        ),
    ];
    with_house(build, "microvms", &more, |env| {
        let mut total = python(&["tests/e2e/microvms"], env)?;
        if whole {
            total += python(&["tests/e2e/python"], env)?;
            total += javascript(env)?;
        } else {
            let modules = MICROVM_MODULES.map(|module| format!("tests/e2e/python/test_{module}.py"));
            total += python(&modules.each_ref().map(String::as_str), env)?;
        }
        total += python(&MICROVM_ESCAPES, env)?;
        Ok(total)
    })
}

fn with_resolver(tests: &Command) -> Command {
    let mut script = command("unshare");
    script.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "tests/e2e/tls/with-resolver.sh",
    ]);
    script.arg(tests.get_program()).args(tests.get_args());
    script.envs(tests.get_envs().filter_map(|(key, value)| Some((key, value?))));
    script
}

/// What a sandbox must not reach is made on this machine: networks, sockets, other sandboxes.
fn escape(build: Build) -> Result<Tally> {
    if !setup::is_root() {
        eprintln!(
            "SKIPPED: the escape ring confines sandboxes, which the container runtime does as root: run it as root"
        );
        return Ok(Tally {
            skipped: 1,
            ..Tally::default()
        });
    }
    let env = BTreeMap::from([("ATOLL_BIN".to_owned(), build.atoll()?.display().to_string())]);
    python(&["tests/e2e/escape"], &env)
}

/// Runs tests, shows what they print as they print it, and counts.
fn run_and_count(what: &str, tests: &mut Command, count: fn(&str) -> Tally) -> Result<Tally> {
    eprintln!("test: {what}");
    let mut child = tests
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {tests:?}"))?;
    let mut output = String::new();
    let stdout = child.stdout.take().context("the tests' output is piped")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        let _ = writeln!(std::io::stdout(), "{line}");
        output.push_str(&line);
        output.push('\n');
    }
    let status = child.wait()?;
    let mut tally = count(&output);
    if !status.success() && tally.failed == 0 {
        eprintln!("test: {what} ended with {status} although no test failed");
        tally.failed = 1;
    }
    if status.success() && tally == Tally::default() {
        bail!("{what} ran no test");
    }
    Ok(tally)
}
