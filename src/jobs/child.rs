//! A child process that computes for a job: the same binary, at the lowest priority, with a memory limit and a log file.
//!
//! It is stopped by kill -9 at any moment, because whatever it leaves can be gone on with. It ends when its standard input does, so that
//! it never outlives the server ([`end_with_parent`] is its side of that).

use std::{
    ffi::OsString,
    fs::TryLockError,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

/// How children are started.
#[derive(Clone, Debug)]
pub struct ChildSettings {
    /// What is run.
    pub program: PathBuf,
    /// Anonymous memory that a child may hold, in bytes; none: no limit.
    pub memory_bytes: Option<u64>,
    /// Its niceness, 0 to 19.
    pub niceness: u8,
    /// The bearer key for an OpenAI-compatible server.
    pub api_key: Option<Secret>,
}

/// Never printed.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// One child.
pub(super) struct ChildSpec {
    pub(super) arguments: Vec<OsString>,
    /// What it says on its standard error is appended here.
    pub(super) log: PathBuf,
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ChildEnd {
    /// Well.
    Done,
    /// It gave up, and says why; to try again would give the same.
    Failed(String),
    /// Something killed it.
    CutShort(String),
    /// It took more memory than it may.
    OverMemory(String),
    /// `stop` was cancelled.
    Stopped,
}

/// How long a child may take to die: at its priority it gives back its memory slowly.
const DYING: Duration = Duration::from_secs(120);
/// How often its memory is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How much of the log's end an error message may quote.
const QUOTED_BYTES: u64 = 2000;

/// Runs a child until it ends or `stop`; each line of JSON that it writes goes to `event`.
///
/// # Errors
/// When it can't be started.
pub(super) async fn run(
    settings: &ChildSettings,
    spec: ChildSpec,
    stop: &CancellationToken,
    mut event: impl FnMut(Value),
) -> anyhow::Result<ChildEnd> {
    let Some(log) = own_log(&spec.log, stop).await? else {
        return Ok(match stop.is_cancelled() {
            true => ChildEnd::Stopped,
            false => ChildEnd::CutShort("the process of the attempt before is still there".into()),
        });
    };
    let begun_at = log.metadata()?.len();
    let mut child = start(settings, &spec, log)?;
    let output = child.stdout.take().context("a child has no standard output")?;
    // Held open as long as the child runs.
    let _input = child.stdin.take();
    let mut lines = BufReader::new(output).lines();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => {
                    if let Ok(value) = serde_json::from_str(&line) {
                        event(value);
                    }
                }
                // Its output has ended, so it is about to.
                Ok(None) | Err(_) => break,
            },
            () = stop.cancelled() => {
                child.kill().await?;
                return Ok(ChildEnd::Stopped);
            }
            _ = look.tick() => {
                if let Some(over) = over_memory(&child, settings.memory_bytes) {
                    child.kill().await?;
                    return Ok(ChildEnd::OverMemory(over));
                }
            }
        }
    }
    let status = tokio::select! {
        status = child.wait() => status?,
        () = stop.cancelled() => {
            child.kill().await?;
            return Ok(ChildEnd::Stopped);
        }
    };
    if status.success() {
        return Ok(ChildEnd::Done);
    }
    let said = last_words(&spec.log, begun_at);
    Ok(match status.code() {
        Some(code) if code == i32::from(ORPHANED) => {
            ChildEnd::CutShort("its standard input was closed".into())
        }
        Some(code) if said.is_empty() => {
            ChildEnd::Failed(format!("it ended with code {code} and said nothing"))
        }
        Some(_) => ChildEnd::Failed(said),
        None => ChildEnd::CutShort(format!("it was ended by {status}")),
    })
}

/// The log, locked. The lock goes to the child with the file, and ends when the last process that has it does: so a child never works
/// beside the one of an attempt before, which may take its time to die after its server was killed. None if that one lives on.
async fn own_log(path: &Path, stop: &CancellationToken) -> anyhow::Result<Option<std::fs::File>> {
    let log = fs_err::OpenOptions::new().create(true).append(true).open(path)?.into_parts().0;
    let start = Instant::now();
    while start.elapsed() < DYING {
        match log.try_lock() {
            Ok(()) => return Ok(Some(log)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| path.display().to_string()),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
    Ok(None)
}

fn start(settings: &ChildSettings, spec: &ChildSpec, log: std::fs::File) -> anyhow::Result<Child> {
    let prepared = |mut command: Command| -> std::io::Result<Command> {
        command.args(&spec.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        command.stderr(log.try_clone()?);
        // What configures the server is not meant for the child; it is told what it must know.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("EXPANDR_") && !text.starts_with("EXPANDR_LOG") {
                command.env_remove(&name);
            }
        }
        if let Some(Secret(key)) = &settings.api_key {
            command.env(API_KEY, key);
        }
        Ok(command)
    };
    let program = settings.program.display();
    // POSIX' own way to a lower priority; it becomes the program, so that the process is one and the same.
    let mut nice = Command::new("nice");
    nice.arg("-n").arg(settings.niceness.to_string()).arg(&settings.program);
    match prepared(nice)?.spawn() {
        Ok(child) => return Ok(child),
        Err(error) => {
            tracing::warn!(%error, "`nice` can't be run: the job runs at the server's own priority")
        }
    }
    prepared(Command::new(&settings.program))?.spawn().with_context(|| format!("{program}: can't be run"))
}

/// Where the child looks for it: not on its command line, which everybody may read.
pub const API_KEY: &str = "EXPANDR_EXPANDER_API_KEY";

/// What to say when it holds more than it may.
fn over_memory(child: &Child, limit: Option<u64>) -> Option<String> {
    let limit = limit?;
    let held = anonymous_bytes(child.id()?)?;
    (held > limit).then(|| {
        format!(
            "it held {} MiB of memory, and --job-memory-mib allows {}; raise that, or make batches or models smaller",
            held >> 20,
            limit >> 20
        )
    })
}

/// Memory that only the process holds: not what is mapped from files, which the system takes back when it needs to.
fn anonymous_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

/// The last lines of a log behind `begun_at`: from the last that begins with `error:` on, if there is one.
fn last_words(log: &Path, begun_at: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs_err::File::open(log)?;
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(begun_at.max(end.saturating_sub(QUOTED_BYTES))))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    match text.rfind("error: ") {
        Some(at) => text[at + "error: ".len()..].trim().to_owned(),
        None => {
            text.lines().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("; ")
        }
    }
}

/// Exit code of a child whose parent has gone.
const ORPHANED: u8 = 86;

/// For a process that is a job's child: ends it when its standard input ends, and offers it first to a system that runs out of memory.
/// Called once, at its start.
pub fn end_with_parent() {
    // Where there is no such file, there is no such choice.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    std::thread::spawn(|| {
        let mut buffer = [0; 64];
        let mut input = std::io::stdin();
        loop {
            match input.read(&mut buffer) {
                Ok(0) => std::process::exit(i32::from(ORPHANED)),
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                    std::process::exit(i32::from(ORPHANED))
                }
                Ok(_) | Err(_) => {}
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(
        script: &str,
        memory_bytes: Option<u64>,
        stop: &CancellationToken,
    ) -> (ChildEnd, Vec<Value>, String) {
        let folder = tempfile::tempdir().unwrap();
        let settings = ChildSettings { program: "/bin/sh".into(), memory_bytes, niceness: 19, api_key: None };
        let log = folder.path().join("log");
        let spec = ChildSpec { arguments: vec!["-c".into(), script.into()], log: log.clone() };
        let mut events = Vec::new();
        let end = run(&settings, spec, stop, |event| events.push(event)).await.unwrap();
        (end, events, fs_err::read_to_string(log).unwrap())
    }

    #[tokio::test]
    async fn events_come_through_and_the_rest_goes_to_the_log() {
        let stop = CancellationToken::new();
        let script =
            r#"echo '{"event":"note"}'; echo noise; echo "on the side" >&2; nice; echo "{\"nice\":$(nice)}""#;
        let (end, events, log) = shell(script, None, &stop).await;
        assert_eq!(end, ChildEnd::Done);
        assert_eq!(events[0]["event"], "note");
        assert_eq!(events.last().unwrap()["nice"], 19, "{events:?}");
        assert_eq!(log, "on the side\n");
    }

    #[tokio::test]
    async fn a_failure_is_told_from_a_kill_and_quotes_the_error() {
        let stop = CancellationToken::new();
        let (end, ..) = shell("echo warned >&2; echo 'error: no such recipe' >&2; exit 1", None, &stop).await;
        assert_eq!(end, ChildEnd::Failed("no such recipe".into()));
        let (end, ..) = shell("kill -9 $$", None, &stop).await;
        assert!(matches!(end, ChildEnd::CutShort(ref why) if why.contains("signal: 9")), "{end:?}");
    }

    #[tokio::test]
    async fn it_is_stopped_at_once_and_killed_over_its_memory() {
        let stop = CancellationToken::new();
        let started = Instant::now();
        let stopping = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stopping.cancel();
        });
        let (end, ..) = shell("exec sleep 60", None, &stop).await;
        assert_eq!(end, ChildEnd::Stopped);
        assert!(started.elapsed() < Duration::from_secs(20));
        // A string that doubles until it is over the limit.
        let script = "x=0123456789; while :; do x=$x$x; [ ${#x} -lt 30000000 ] || sleep 30; done";
        let (end, ..) = shell(script, Some(16 << 20), &CancellationToken::new()).await;
        assert!(
            matches!(end, ChildEnd::OverMemory(ref why) if why.contains("--job-memory-mib allows 16")),
            "{end:?}"
        );
    }

    #[tokio::test]
    async fn its_standard_input_stays_open_while_it_runs() {
        let stop = CancellationToken::new();
        // `cat` would end well at the end of the input; as it doesn't come, `timeout` ends it with 124.
        let script = r#"timeout 0.3 cat; echo "{\"code\":$?}""#;
        let (_, events, _) = shell(script, None, &stop).await;
        assert_eq!(events, [serde_json::json!({"code": 124})]);
    }

    #[tokio::test]
    async fn a_child_waits_for_the_one_before_to_die() {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            ChildSettings { program: "/bin/sh".into(), memory_bytes: None, niceness: 0, api_key: None };
        let spec = |script: &str| ChildSpec {
            arguments: vec!["-c".into(), script.into()],
            log: folder.path().join("log"),
        };
        // The first one leaves a process behind that has its log, as a child has whose server was killed.
        let leaves = "sleep 0.7 >/dev/null & echo '{}'";
        run(&settings, spec(leaves), &CancellationToken::new(), |_| ()).await.unwrap();
        let started = Instant::now();
        run(&settings, spec("true"), &CancellationToken::new(), |_| ()).await.unwrap();
        assert!(started.elapsed() > Duration::from_millis(300), "{:?}", started.elapsed());
    }
}
