//! Images out of a registry: how fast they come, and what the daemon takes for a large layer.
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use artifact::{Images, Policy, RegistryPolicy};
use wire::rest::StartBuild;

use crate::archive::{self, Layer};
use crate::builds;
use crate::figures::{Figures, Goal};
use crate::house::House;
use crate::memory;
use crate::registry::Registry;
use crate::scale::Scale;

/// Of the image that is pulled.
const LAYERS: u32 = 5;
/// What a pull is to reach of `tar -x`.
const SHARE: f64 = 0.5;
/// What the daemon may take above what it has when idle.
const ABOVE_IDLE_MIB: f64 = 100.0;
/// Until what was freed is counted.
const SETTLED: Duration = Duration::from_secs(3);
const TEMPLATE: &str = "bench-layer";

pub(crate) async fn measure(scale: Scale, house: &House, figures: &mut Figures) -> Result<()> {
    let variable =
        |name| std::env::var(name).with_context(|| format!("{name} is not set: run `cargo xtask bench`"));
    let (address, dir) = (variable("ATOLL_BENCH_REGISTRY")?, variable("ATOLL_BENCH_DIR")?);
    let dir = Path::new(&dir);
    let registry = Registry::start(&address, dir).await?;
    pulls(scale, &registry, dir, figures).await?;
    large_layer(scale, house, &registry, figures).await
}

/// The same layers by Atoll and by tar, by turns, onto the same disk.
async fn pulls(scale: Scale, registry: &Registry, dir: &Path, figures: &mut Figures) -> Result<()> {
    let layers = (0..LAYERS).map(|number| archive::of_files(u64::from(number) + 1, scale.image_mib / LAYERS));
    let layers: Vec<Layer> = layers.collect::<Result<_>>()?;
    let reference = registry.push("much", &layers).await?;
    let archives: Vec<_> = (0..layers.len())
        .map(|number| dir.join(format!("{number}.tar.gz")))
        .collect();
    for (path, layer) in archives.iter().zip(&layers) {
        fs::write(path, &layer.blob)?;
    }
    drop(layers);
    let (mut tars, mut written, mut pulled) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        let plain = dir.join("plain");
        quiet(dir)?;
        let begun = Instant::now();
        for (number, path) in archives.iter().enumerate() {
            let into = plain.join(number.to_string());
            fs::create_dir_all(&into)?;
            run(Command::new("tar").arg("-xzf").arg(path).arg("-C").arg(into))?;
        }
        tars.push(begun.elapsed());
        quiet(dir)?;
        written.push(begun.elapsed());
        fs::remove_dir_all(&plain)?;

        let images = dir.join("images");
        quiet(dir)?;
        pulled.push(pull(&images, registry, &reference).await?);
        fs::remove_dir_all(&images)?;
    }
    for path in archives {
        fs::remove_file(path)?;
    }
    let mib = f64::from(scale.image_mib);
    let rate = |mut times: Vec<Duration>| {
        times.sort_unstable();
        mib / times[times.len() / 2].as_secs_f64()
    };
    let plain = rate(tars);
    figures.one(
        format!("floor: `tar -xz` of {mib} MiB in {LAYERS} layers"),
        Goal::NONE,
        plain,
        "MiB/s",
    );
    figures.one(
        "floor: the same, and `sync` of the disk",
        Goal::NONE,
        rate(written),
        "MiB/s",
    );
    figures.one(
        "the same layers pulled from a registry on loopback, verified, unpacked, durable",
        Goal::at_least(plain * SHARE),
        rate(pulled),
        "MiB/s",
    );
    Ok(())
}

async fn pull(dir: &Path, registry: &Registry, reference: &str) -> Result<Duration> {
    let policy = Policy {
        registries: [(registry.address.clone(), RegistryPolicy::default())].into(),
        ..Policy::default()
    };
    let images = Images::open(dir, policy)?;
    let begun = Instant::now();
    let image = images.pull(reference, None, None).await?;
    let took = begun.elapsed();
    ensure!(
        image.layers.len() == LAYERS as usize,
        "it came with {} layers",
        image.layers.len()
    );
    Ok(took)
}

/// Writes back what others have left, so that it is not counted as what comes next.
fn quiet(dir: &Path) -> Result<()> {
    run(Command::new("sync").arg("--file-system").arg(dir))
}

fn run(program: &mut Command) -> Result<()> {
    let status = program
        .status()
        .with_context(|| format!("cannot run {program:?}"))?;
    ensure!(status.success(), "{program:?} ended with {status}");
    Ok(())
}

async fn large_layer(scale: Scale, house: &House, registry: &Registry, figures: &mut Figures) -> Result<()> {
    let layers = [
        archive::small_root()?,
        archive::of_large_files(1, scale.layer_mib)?,
    ];
    let recipe = StartBuild {
        from_image: Some(registry.push("large", &layers).await?),
        ..StartBuild::default()
    };
    drop(layers);
    tokio::time::sleep(SETTLED).await;
    let idle = memory::resident_mib(house.daemon)?;
    memory::forget_peak(house.daemon)?;
    let build = builds::build(house, TEMPLATE, &recipe).await?;
    let peak = memory::peak_mib(house.daemon)?;
    let sandbox = house.create_from(TEMPLATE).await?;
    house.check_and_kill(&[sandbox]).await?;
    let mib = f64::from(scale.layer_mib);
    figures.one(
        format!("build of an image with a layer of {mib} MiB, pull and boot and all"),
        Goal::NONE,
        mib / build.took.as_secs_f64(),
        "MiB/s",
    );
    figures.one(
        "daemon, grown at most above idle meanwhile",
        Goal::at_most(ABOVE_IDLE_MIB),
        peak - idle,
        "MiB",
    );
    builds::remove(house, TEMPLATE).await
}
