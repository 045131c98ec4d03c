//! The server under test as a child process: started, waited for, stopped.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::args::Args;
use crate::target::Target;

/// Lines of the server's output that a message shows.
const SHOWN_LINES: usize = 20;

/// A server that this program has started. It is killed when this is dropped.
pub(crate) struct Server {
    command: String,
    child: Child,
    pid: u32,
    ready_after: Duration,
    log: Log,
}

/// How it ended.
pub(crate) struct Ending {
    command: String,
    ready_after: Duration,
    status: String,
    /// What was not as it should be: it ended by itself, or had to be killed.
    pub(crate) trouble: Option<String>,
}

/// Where its output goes; a temporary file vanishes with this.
struct Log {
    path: PathBuf,
    _temporary: Option<tempfile::NamedTempFile>,
}

impl Server {
    /// Starts `command` and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When something answers at the endpoint before, or the server ends or is not ready in time; with the end of its output.
    pub(crate) async fn start(command: &str, args: &Args, target: &Target) -> Result<Self> {
        ensure!(
            !target.answers(&args.ready_path).await,
            "a server answers at {} already; stop it, or leave --start out",
            args.endpoint
        );
        let log = Log::open(args)?;
        // `exec`: the child is the server itself, not a shell that waits for it.
        let child = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .stdin(Stdio::null())
            .stdout(log.handle()?)
            .stderr(log.handle()?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("--start {command:?} can't be run"))?;
        let pid = child.id().context("the server ended at once")?;
        let mut server = Self { command: command.to_owned(), child, pid, ready_after: Duration::ZERO, log };
        server.wait_until_ready(args, target).await?;
        Ok(server)
    }

    async fn wait_until_ready(&mut self, args: &Args, target: &Target) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < args.start_timeout.0 {
            if let Some(status) = self.child.try_wait()? {
                bail!("--start {:?} ended with {status} before it was ready{}", self.command, self.log.end());
            }
            if target.answers(&args.ready_path).await {
                self.ready_after = start.elapsed();
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!(
            "--start {:?} was not ready after {:?} ({}{}); raise --start-timeout{}",
            self.command,
            args.start_timeout.0,
            args.endpoint,
            args.ready_path,
            self.log.end()
        )
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Asks it to stop (SIGTERM), and kills it when it hasn't after `patience`.
    pub(crate) async fn stop(mut self, patience: Duration) -> Result<Ending> {
        if let Some(status) = self.child.try_wait()? {
            let trouble =
                format!("the server ended by itself under the load, with {status}{}", self.log.end());
            return Ok(self.ending(&status, Some(trouble)));
        }
        // A shell's own `kill`: signals have no safe interface in the standard library.
        Command::new("sh").args(["-c", "kill -TERM \"$0\"", &self.pid.to_string()]).status().await?;
        if let Ok(status) = tokio::time::timeout(patience, self.child.wait()).await {
            return Ok(self.ending(&status?, None));
        }
        self.child.kill().await?;
        let status = self.child.wait().await?;
        let trouble = format!("the server had not stopped {patience:?} after SIGTERM, and was killed");
        Ok(self.ending(&status, Some(trouble)))
    }

    fn ending(&self, status: &ExitStatus, trouble: Option<String>) -> Ending {
        Ending {
            command: self.command.clone(),
            ready_after: self.ready_after,
            status: status.to_string(),
            trouble,
        }
    }
}

impl Ending {
    pub(crate) fn json(&self) -> Value {
        json!({
            "command": self.command,
            "ready_after_seconds": self.ready_after.as_secs_f64(),
            "ended_with": self.status,
            "trouble": self.trouble,
        })
    }
}

impl Log {
    fn open(args: &Args) -> Result<Self> {
        if let Some(path) = &args.server_log {
            fs_err::File::create(path)?;
            return Ok(Self { path: path.clone(), _temporary: None });
        }
        let file = tempfile::NamedTempFile::new().context("no temporary file for the server's output")?;
        Ok(Self { path: file.path().to_owned(), _temporary: Some(file) })
    }

    fn handle(&self) -> Result<Stdio> {
        let file = fs_err::OpenOptions::new().append(true).open(&self.path)?;
        Ok(Stdio::from(file.into_parts().0))
    }

    /// The last lines, for a message.
    fn end(&self) -> String {
        let bytes = fs_err::read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        if lines.is_empty() {
            return "; it wrote nothing".into();
        }
        let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
        format!("; the end of its output:\n{}", shown.join("\n"))
    }
}
