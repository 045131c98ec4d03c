//! Memory and CPU of the server's process and of this one, from Linux' /proc, over time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(500);

/// Ticks a second of the CPU times in /proc/PID/stat: what Linux tells programs on every architecture that Rust's
/// standard library runs on, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// Looks at a process until it is dropped.
pub(crate) struct Sampler {
    readings: Arc<Mutex<Vec<Reading>>>,
    task: tokio::task::JoinHandle<()>,
}

/// One look.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    resident_bytes: u64,
    threads: u64,
    /// User and system time since the process began.
    cpu_seconds: f64,
    /// The same of the load generator.
    own_cpu_seconds: f64,
}

/// What the process used under one load.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    /// Each look: seconds since the load began, bytes of memory, and cores kept busy since the look before.
    pub(crate) series: Vec<UsagePoint>,
    /// Cores kept busy in the mean, by the server and by the generator.
    pub(crate) cpu_cores: f64,
    pub(crate) own_cpu_cores: f64,
    pub(crate) most_threads: u64,
}

/// One look at a process under a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UsagePoint {
    pub(crate) seconds: f64,
    pub(crate) resident_bytes: u64,
    pub(crate) cpu_cores: f64,
}

impl Sampler {
    /// Looks at process `pid` from now on; none where there is no such process in a /proc.
    pub(crate) fn start(pid: u32) -> Option<Self> {
        let first = Reading::take(pid)?;
        let readings = Arc::new(Mutex::new(vec![first]));
        let kept = Arc::clone(&readings);
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(INTERVAL);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                // A process that is gone stays gone.
                let Some(reading) = Reading::take(pid) else { return };
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(reading);
            }
        });
        Some(Self { readings, task })
    }

    /// What was used between two moments; none where fewer than two looks fell between them.
    pub(crate) fn usage(&self, from: Instant, to: Instant) -> Option<Usage> {
        let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        let within: Vec<Reading> =
            readings.iter().filter(|reading| (from..=to).contains(&reading.at)).copied().collect();
        let (first, last) = (within.first()?, within.last()?);
        let seconds = (last.at - first.at).as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let series = within.windows(2).map(|pair| {
            let [before, now] = [pair[0], pair[1]];
            let passed = (now.at - before.at).as_secs_f64().max(1e-3);
            UsagePoint {
                seconds: (now.at - from).as_secs_f64(),
                resident_bytes: now.resident_bytes,
                cpu_cores: (now.cpu_seconds - before.cpu_seconds) / passed,
            }
        });
        Some(Usage {
            series: series.collect(),
            cpu_cores: (last.cpu_seconds - first.cpu_seconds) / seconds,
            own_cpu_cores: (last.own_cpu_seconds - first.own_cpu_seconds) / seconds,
            most_threads: within.iter().map(|reading| reading.threads).max().unwrap_or(0),
        })
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reading {
    fn take(pid: u32) -> Option<Self> {
        let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let own = fs_err::read_to_string("/proc/self/stat").ok()?;
        let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            at: Instant::now(),
            resident_bytes: field(&status, "VmRSS:")? * 1024,
            threads: field(&status, "Threads:")?,
            cpu_seconds: cpu_seconds(&stat)?,
            own_cpu_seconds: cpu_seconds(&own)?,
        })
    }
}

/// A number of /proc/PID/status. A process that has ended and was not waited for has no memory, and so no reading.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time: the 14th and 15th field; the 2nd, a name in parentheses, may hold spaces and parentheses.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let user: f64 = fields.get(11)?.parse().ok()?;
    let system: f64 = fields.get(12)?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

impl Usage {
    /// The mean memory of the last quarter of the load by that of its first, less 1: how much it grew.
    pub(crate) fn memory_growth(&self) -> Option<f64> {
        let quarter = self.series.len().div_ceil(4);
        let first = mean_bytes(&self.series[..quarter])?;
        let last = mean_bytes(&self.series[self.series.len() - quarter..])?;
        Some(last / first - 1.0)
    }

    pub(crate) fn most_bytes(&self) -> u64 {
        self.series.iter().map(|point| point.resident_bytes).max().unwrap_or(0)
    }

    pub(crate) fn json(&self) -> Value {
        let series: Vec<Value> = self
            .series
            .iter()
            .map(|point| json!([rounded(point.seconds), point.resident_bytes, rounded(point.cpu_cores)]))
            .collect();
        json!({
            "resident_bytes_first": self.series.first().map(|point| point.resident_bytes),
            "resident_bytes_last": self.series.last().map(|point| point.resident_bytes),
            "resident_bytes_max": self.most_bytes(),
            "memory_growth": self.memory_growth(),
            "cpu_cores_mean": rounded(self.cpu_cores),
            "threads_max": self.most_threads,
            "generator_cpu_cores_mean": rounded(self.own_cpu_cores),
            "columns": ["seconds", "resident_bytes", "cpu_cores"],
            "series": series,
        })
    }
}

fn mean_bytes(points: &[UsagePoint]) -> Option<f64> {
    let sum: u64 = points.iter().map(|point| point.resident_bytes).sum();
    (sum > 0).then(|| sum as f64 / points.len() as f64)
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        assert_eq!(field("Name:\tx\nVmRSS:\t  1234 kB\nThreads:\t7\n", "VmRSS:"), Some(1234));
        assert_eq!(field("Name:\tx\nState:\tZ (zombie)\n", "VmRSS:"), None);
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 12345 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(3.0));
    }

    #[test]
    fn growth_compares_the_last_quarter_with_the_first() {
        let point = |bytes| UsagePoint { seconds: 0.0, resident_bytes: bytes, cpu_cores: 0.0 };
        let usage = |bytes: &[u64]| Usage {
            series: bytes.iter().copied().map(point).collect(),
            cpu_cores: 0.0,
            own_cpu_cores: 0.0,
            most_threads: 1,
        };
        let grown = usage(&[100, 100, 150, 150, 150, 150, 200, 200]).memory_growth().unwrap();
        assert!((grown - 1.0).abs() < 1e-9, "{grown}");
        assert_eq!(usage(&[7, 7, 9, 7, 7]).memory_growth(), Some(0.0));
        assert_eq!(usage(&[]).memory_growth(), None);
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn this_process_is_seen_at_work() {
        let start = Instant::now();
        let sampler = Sampler::start(std::process::id()).unwrap();
        let mut sum = 0u64;
        while start.elapsed() < Duration::from_millis(1600) {
            sum = std::hint::black_box(sum.wrapping_add(1));
            if sum.is_multiple_of(1_000_000) {
                tokio::task::yield_now().await;
            }
        }
        let usage = sampler.usage(start, Instant::now()).unwrap();
        assert!(usage.cpu_cores > 0.2, "{usage:?}");
        assert!(usage.most_bytes() > 1_000_000, "{usage:?}");
        assert!(Sampler::start(u32::MAX).is_none());
    }
}
