//! What the benchmarks share: arguments, figures, and what they leave behind.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub mod engine;

use std::future::Future;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Ports that benchmarks may use, below those of the tests.
const PORTS: std::ops::Range<u16> = 15_600..17_500;

/// Whether the full size was asked for (`--full`); without it, the size that shows that it works.
pub fn full() -> bool {
    std::env::args().any(|argument| argument == "--full")
}

/// A free block of loopback ports.
pub fn ports(count: u16) -> Result<u16> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut firsts = PORTS.step_by(usize::from(count)).filter(|first| first + count <= PORTS.end);
    firsts.find(|first| (*first..first + count).all(free)).context("no free ports in the benchmarks' range")
}

/// Waits until `look` finds something.
pub async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How long each phase took, in the order in which they came first.
#[derive(Default)]
pub struct Phases(Vec<(String, Figures)>);

impl Phases {
    /// Takes when each phase was over, in milliseconds after the first began, in that order.
    pub fn take(&mut self, over: &[(String, f64)]) {
        let mut before = 0.0;
        for (name, over) in over {
            let at = self.0.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                self.0.push((name.clone(), Figures::default()));
                self.0.len() - 1
            });
            self.0[at].1.take(over - before);
            before = *over;
        }
    }

    /// One row each, with what `phase` calls it.
    pub fn print(&self, decimals: usize, phase: impl Fn(&str) -> String) {
        for (name, figures) in &self.0 {
            figures.row(&phase(name), decimals);
        }
    }
}

/// Figures of one kind, in any unit.
#[derive(Default)]
pub struct Figures(Vec<f64>);

impl Figures {
    pub fn take(&mut self, figure: f64) {
        self.0.push(figure);
        self.0.sort_by(f64::total_cmp);
    }

    pub fn take_time(&mut self, time: Duration) {
        self.take(time.as_secs_f64() * 1000.0);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The figure that so many percent are not above (nearest rank).
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
    pub fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        let (low, high) = (self.0.get((self.0.len().max(1) - 1) / 2), self.0.get(self.0.len() / 2));
        low.zip(high).map_or(f64::NAN, |(low, high)| f64::midpoint(*low, *high))
    }

    /// A row of a table: median, least and greatest.
    pub fn row(&self, name: &str, digits: usize) {
        let (least, greatest) = (self.0.first().unwrap_or(&f64::NAN), self.0.last().unwrap_or(&f64::NAN));
        println!("| {name} | {:.digits$} | {least:.digits$} | {greatest:.digits$} |", self.median());
    }
}

/// Ours and a baseline, measured in turns.
#[derive(Default)]
pub struct Pairs {
    pub ours: Figures,
    pub baseline: Figures,
    pub ratio: Figures,
}

impl Pairs {
    pub fn take(&mut self, ours: Duration, baseline: Duration) {
        self.ours.take_time(ours);
        self.baseline.take_time(baseline);
        self.ratio.take(ours.as_secs_f64() / baseline.as_secs_f64());
    }
}

pub fn heading(title: &str, unit: &str) {
    println!("\n### {title}\n\n| {unit} | median | min | max |\n|---|---|---|---|");
}

/// What was promised, and whether it was kept. Only figures of the full size are held to it: a
/// small run shares its machine with whatever else runs there.
pub struct Verdict(bool);

impl Verdict {
    pub fn new() -> Self {
        println!();
        Self(true)
    }

    pub fn at_most(&mut self, what: &str, figure: f64, target: f64) {
        let kept = figure <= target;
        println!("{}: {what}: {figure:.2} (target: at most {target})", if kept { "kept" } else { "MISSED" });
        self.0 &= kept;
    }

    pub fn at_least(&mut self, what: &str, figure: f64, target: f64) {
        let kept = figure >= target;
        println!("{}: {what}: {figure:.3} (target: at least {target})", if kept { "kept" } else { "MISSED" });
        self.0 &= kept;
    }

    pub fn end(self) -> Result<()> {
        ensure!(self.0 || !full(), "a target was missed");
        Ok(())
    }
}
