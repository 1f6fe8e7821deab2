//! One look at what tenants take of the disk: 200 volumes on the real engine, each with the files of a
//! Hoodie that has some users. What it costs, and that it sees what is there.
//!
//! `cargo bench --bench disk -- [--full]`

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use common::{Figures, Verdict, full, heading};
use haas::config::Config;
use haas::containers::{Containers, Docker, DockerSettings, VolumeBound};
use haas::credentials::InstanceKey;
use haas::instance::storage::{Limits, Taken};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use uuid::Uuid;

/// A database of `LevelDB` after some writes: so many files, of so many bytes.
const FILES: [(&str, usize); 5] =
    [("000003.log", 30_000), ("CURRENT", 16), ("LOCK", 0), ("LOG", 200), ("MANIFEST-000002", 50)];
/// Databases of one Hoodie: five of its own, and one for each of its users.
const DATABASES: usize = 15;
const LIMITS: Limits = Limits { mib: 1024, files: 100_000 };

fn main() -> Result<()> {
    let (volumes, looks) = if full() { (200, 50) } else { (20, 5) };
    tokio::runtime::Runtime::new()?.block_on(measure(volumes, looks))
}

async fn measure(count: usize, looks: u32) -> Result<()> {
    let installation = Uuid::new_v4();
    let tenant = Config::load(None, [], BTreeMap::new())?.tenant;
    let docker = Docker::new(DockerSettings { installation, tenant, key: InstanceKey::new([0; 32]) });
    let volumes = Volumes::make(installation, count)?;
    let bounds = || -> Vec<VolumeBound> {
        volumes.0.iter().map(|name| VolumeBound { name: name.clone(), limits: LIMITS }).collect()
    };
    let taken = docker.disk_taken(bounds()).await?;
    let least = (DATABASES * 30_000) as u64;
    let right = |taken: &Option<Taken>| taken.is_some_and(|taken| (least..4 * least).contains(&taken.bytes));
    ensure!(taken.len() == count && taken.iter().all(right), "it sees something else: {taken:?}");

    let mut wall = Figures::default();
    let before = getrusage(UsageWho::RUSAGE_SELF)?;
    for _ in 0..looks {
        let began = Instant::now();
        docker.disk_taken(bounds()).await?;
        wall.take_time(began.elapsed());
    }
    let after = getrusage(UsageWho::RUSAGE_SELF)?;
    let spent = (after.user_time() + after.system_time()) - (before.user_time() + before.system_time());
    let cpu = f64::from(i32::try_from(spent.num_microseconds())?) / 1000.0 / f64::from(looks);
    heading(&format!("A look at {count} volumes with {} files each, {looks} looks", DATABASES * FILES.len()), "ms");
    wall.row("wall time", 1);
    println!("\nCPU time of one: {cpu:.1} ms. One look each 30 s: {:.3} % of a CPU.", cpu / 300.0);
    let mut verdict = Verdict::new();
    verdict.at_most("CPU time of a look, in ms", cpu, 100.0);
    verdict.end()
}

/// Removed when they are dropped.
struct Volumes(Vec<String>);

impl Volumes {
    fn make(installation: Uuid, count: usize) -> Result<Self> {
        let mut made = Self(Vec::new());
        for number in 0..count {
            let name = format!("haas-bench-{}-{number}", installation.simple());
            docker(&["volume", "create", "--label", &format!("haas.installation={installation}"), &name])?;
            made.0.push(name.clone());
            let folder = docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", &name])?;
            for database in 0..DATABASES {
                let folder = Path::new(&folder).join(format!("database-{database}"));
                std::fs::create_dir(&folder).context("this benchmark has to run as root")?;
                for (file, bytes) in FILES {
                    std::fs::write(folder.join(file), vec![b'x'; bytes])?;
                }
            }
        }
        // What is not on the disk yet takes nothing there.
        nix::unistd::sync();
        Ok(made)
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for names in self.0.chunks(50) {
            drop(Command::new("docker").args(["volume", "rm", "-f"]).args(names).output());
        }
    }
}

fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker").args(arguments).output()?;
    ensure!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
