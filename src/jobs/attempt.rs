//! What a job at work tells, remembers, and waits for.

use std::{
    ffi::OsString,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    child::{self, ChildEnd, ChildSpec},
    host::Host,
    queue::{Jobs, disk},
    record::{JobRecord, Memory, Progress},
};
use crate::http::problem::{Code, Problem};

/// Why an attempt has no result.
#[derive(Debug)]
pub(super) enum Broken {
    /// It can't be done.
    Failed(Box<Problem>),
    /// Something from outside ended it; another attempt goes on.
    CutShort(String),
    /// It was cancelled, or the server stops.
    Stopped,
}

impl From<Problem> for Broken {
    fn from(problem: Problem) -> Self {
        Self::Failed(Box::new(problem))
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::from(disk(&error))
    }
}

/// How often progress is written to the event log at least apart, in the first minutes.
const TELL: Duration = Duration::from_secs(1);
/// … and how the distance grows: by a second for each so many seconds of work, so that the log of a long job stays small.
const TELL_GROWS: u32 = 1000;
/// How often progress is made durable at least apart.
const SAVE: Duration = Duration::from_secs(5);

/// One attempt at a job.
pub(super) struct Attempt {
    pub(super) jobs: Arc<Jobs>,
    pub(super) id: String,
    /// The job's own folder.
    pub(super) folder: PathBuf,
    number: u64,
    /// Cancelled when the job is, and when the server stops.
    stop: CancellationToken,
    began: Instant,
    told: Mutex<Told>,
}

struct Told {
    event: Option<Instant>,
    saved: Instant,
}

/// An event of a child: those of `expandr train` and of the evaluation's child. Unknown ones are passed over.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum ChildEvent {
    StageStarted {
        stage: String,
        why: String,
    },
    StageSkipped {},
    Progress {
        stage: String,
        unit: String,
        done: u64,
        total: u64,
        eta_seconds: Option<f64>,
        #[serde(default)]
        figures: Map<String, Value>,
    },
    Note {
        stage: String,
        text: String,
    },
    StageFinished {},
    #[serde(other)]
    Other,
}

impl Attempt {
    pub(super) fn new(
        jobs: Arc<Jobs>,
        record: &JobRecord,
        stop: &CancellationToken,
        cancel: &CancellationToken,
    ) -> Self {
        let folder = jobs.settings.folder.join(&record.id);
        let either = stop.child_token();
        let (cancel, both) = (cancel.clone(), either.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => both.cancel(),
                () = both.cancelled() => {}
            }
        });
        let told = Mutex::new(Told { event: None, saved: Instant::now() });
        let attempt = Self {
            id: record.id.clone(),
            number: record.number,
            folder,
            stop: either,
            began: Instant::now(),
            told,
            jobs,
        };
        // Stages that are done are counted again as they are passed over.
        attempt.jobs.touch(record.number, |record| record.progress.stages_done = 0);
        attempt
    }

    pub(super) fn host(&self) -> &Arc<dyn Host> {
        &self.jobs.host
    }

    /// What the job knew when it was accepted, and has learnt since.
    pub(super) fn memory(&self) -> Memory {
        self.jobs.touch(self.number, |_| ()).memory
    }

    /// Lets the job remember something; durable when this returns.
    pub(super) async fn remember(
        &self,
        remember: impl FnOnce(&mut Memory) + Send + 'static,
    ) -> Result<(), Broken> {
        let (jobs, number) = (self.jobs.clone(), self.number);
        let remembered =
            tokio::task::spawn_blocking(move || jobs.change(number, |record| remember(&mut record.memory)));
        remembered.await.map_err(|error| disk(&error))?;
        Ok(())
    }

    /// Says how many stages the job has in all.
    pub(super) fn stages(&self, stages: u64) {
        self.jobs.touch(self.number, |record| record.progress.stages = Some(stages));
    }

    /// A stage begins.
    pub(super) fn stage(&self, stage: &str, why: &str) {
        let record = self.jobs.touch(self.number, |record| {
            record.stage = Some(stage.to_owned());
            record.progress.begin_stage();
        });
        let event = json!({"stage": stage, "why": why, "progress": record.progress});
        self.jobs.events.write(&self.id, "stage", event);
        self.save();
        self.told.lock().event = None;
    }

    /// A stage is done, now or before.
    pub(super) fn stage_done(&self) {
        self.jobs.touch(self.number, |record| record.progress.stages_done += 1);
    }

    /// Something that a person should know.
    pub(super) fn note(&self, stage: &str, text: &str) {
        self.jobs.events.write(&self.id, "note", json!({"stage": stage, "text": text}));
    }

    /// The stage at hand got on.
    pub(super) fn progress(&self, change: impl FnOnce(&mut Progress)) {
        let record = self.jobs.touch(self.number, |record| change(&mut record.progress));
        let distance = TELL + self.began.elapsed() / TELL_GROWS;
        let is_last = record.progress.total > 0 && record.progress.done >= record.progress.total;
        let (tell, save) = {
            let mut told = self.told.lock();
            let tell = is_last || told.event.is_none_or(|at| at.elapsed() >= distance);
            let save = told.saved.elapsed() >= SAVE;
            if tell {
                told.event = Some(Instant::now());
            }
            if save {
                told.saved = Instant::now();
            }
            (tell, save)
        };
        if tell {
            let event = json!({"stage": record.stage, "progress": record.progress});
            self.jobs.events.write(&self.id, "progress", event);
        }
        if save {
            self.save();
        }
    }

    /// Writes the record as it is by then, in the background.
    fn save(&self) {
        let (jobs, number) = (self.jobs.clone(), self.number);
        tokio::task::spawn_blocking(move || jobs.change(number, |_| ()));
    }

    /// An error if the job was cancelled or the server stops.
    pub(super) fn go_on(&self) -> Result<(), Broken> {
        if self.stop.is_cancelled() { Err(Broken::Stopped) } else { Ok(()) }
    }

    /// Waits for something that the service does; given up on when the job is stopped.
    pub(super) async fn wait<T>(
        &self,
        work: impl Future<Output = Result<T, Problem>> + Send,
    ) -> Result<T, Broken> {
        tokio::select! {
            done = work => Ok(done?),
            () = self.stop.cancelled() => Err(Broken::Stopped),
        }
    }

    /// Waits for a change of the live bundle. Once it has `committed` it can't be taken back, and what follows is seen to its
    /// end also when the job is stopped.
    pub(super) async fn wait_for_change<T>(
        &self,
        committed: &AtomicBool,
        work: impl Future<Output = Result<T, Problem>> + Send,
    ) -> Result<T, Broken> {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            done = &mut work => Ok(done?),
            () = self.stop.cancelled() => match committed.load(Ordering::SeqCst) {
                true => Ok(work.await?),
                false => Err(Broken::Stopped),
            },
        }
    }

    /// Waits, unless the job is stopped.
    pub(super) async fn sleep(&self, duration: Duration) -> Result<(), Broken> {
        self.wait(async {
            tokio::time::sleep(duration).await;
            Ok(())
        })
        .await
    }

    /// Runs a child; its stages are told as `<part>/<stage>`.
    pub(super) async fn child(&self, part: &str, arguments: Vec<OsString>) -> Result<(), Broken> {
        let spec = ChildSpec { arguments, log: self.folder.join("child.log") };
        let end =
            child::run(&self.jobs.settings.child, spec, &self.stop, |event| self.child_event(part, event))
                .await;
        match end {
            Ok(ChildEnd::Done) => Ok(()),
            Ok(ChildEnd::Failed(detail)) => {
                Err(Problem::new(Code::Internal, format!("{part} failed: {detail}")).into())
            }
            Ok(ChildEnd::OverMemory(detail)) => {
                Err(Problem::new(Code::Overloaded, format!("{part} was ended: {detail}")).into())
            }
            Ok(ChildEnd::CutShort(why)) => Err(Broken::CutShort(format!("{part}: {why}"))),
            Ok(ChildEnd::Stopped) => Err(Broken::Stopped),
            Err(error) => Err(Problem::new(Code::Internal, format!("{part} can't be run: {error:#}")).into()),
        }
    }

    fn child_event(&self, part: &str, event: Value) {
        let Ok(event) = serde_json::from_value(event) else { return };
        match event {
            ChildEvent::StageStarted { stage, why } => self.stage(&format!("{part}/{stage}"), &why),
            ChildEvent::StageSkipped {} | ChildEvent::StageFinished {} => self.stage_done(),
            ChildEvent::Note { stage, text } => self.note(&format!("{part}/{stage}"), &text),
            ChildEvent::Progress { stage, unit, done, total, eta_seconds, figures } => {
                self.progress(|progress| {
                    progress.count(&unit, done, total);
                    progress.eta_seconds = eta_seconds;
                    if unit == "steps" {
                        training_step(progress, &stage, done, total, &figures);
                    }
                    progress.figures = figures;
                })
            }
            ChildEvent::Other => {}
        }
    }
}

/// A trainer took a step: what it showed is also kept for after the stage.
fn training_step(progress: &mut Progress, stage: &str, done: u64, total: u64, figures: &Map<String, Value>) {
    (progress.step, progress.steps) = (Some(done), Some(total));
    // The first word of an attempt has no figures yet.
    if let Some(loss) = figures.get("loss").and_then(Value::as_f64) {
        progress.loss = Some(loss);
    }
    if let Some(margin) = figures.get("reward_margin").and_then(Value::as_f64) {
        progress.reward_margin = Some(margin);
    }
    let mut kept = Map::new();
    for (name, value) in [
        ("step", json!(progress.step)),
        ("steps", json!(progress.steps)),
        ("loss", json!(progress.loss)),
        ("reward_margin", json!(progress.reward_margin)),
    ] {
        if !value.is_null() {
            kept.insert(name.to_owned(), value);
        }
    }
    progress.trainings.insert(stage.to_owned(), Value::Object(kept));
}
