//! `expandr jobs watch`: follows a job's events until it has ended, over restarts of the server.

use std::time::{Duration, Instant};

use anyhow::bail;
use futures::StreamExt;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

use super::{
    display::Display,
    event_stream::EventStream,
    job::{Ending, Job},
};
use crate::cli::{
    admin::{Admin, segment},
    client,
};

/// Time without a byte after which the connection is taken for lost. (Servers send comments in between.)
const SILENCE: Duration = Duration::from_secs(60);
/// Time that a server has to tell a job.
const ANSWER: Duration = Duration::from_secs(30);
/// Waits between two tries: the first, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// How a connection ended.
enum Lost {
    /// The server went away or is not ready; it may come back.
    Gone(String),
    /// The server's answer won't change.
    Refused(anyhow::Error),
}

/// Follows job `id` to its end; a server that went away may stay away for `patience`.
///
/// # Errors
/// When there is no such job, or no server (for longer than that).
pub(super) async fn watch(admin: &Admin, id: &str, patience: Duration) -> anyhow::Result<(Job, Ending)> {
    let mut display = Display::new()?;
    let followed = Follower { admin, id, last_event: None, display: &mut display }.follow(patience).await;
    display.finish();
    followed
}

struct Follower<'a> {
    admin: &'a Admin,
    id: &'a str,
    last_event: Option<String>,
    display: &'a mut Display,
}

impl Follower<'_> {
    async fn follow(mut self, patience: Duration) -> anyhow::Result<(Job, Ending)> {
        // A server that isn't there at the beginning won't be waited for.
        let mut job = match self.job().await {
            Ok(job) => job,
            Err(Lost::Refused(error)) => return Err(error),
            Err(Lost::Gone(why)) => {
                bail!("{why}; is `expandr serve` running there? (--endpoint changes the address)")
            }
        };
        let mut heard = Instant::now();
        let mut wait = WAITS.0;
        loop {
            self.display.show(&job);
            if let Some(ending) = job.ending() {
                return Ok((job, ending));
            }
            let before = self.last_event.clone();
            let lost = match self.events(&mut job).await {
                Ok(()) => None,
                Err(Lost::Refused(error)) => return Err(error),
                Err(Lost::Gone(why)) => Some(why),
            };
            if before != self.last_event {
                (heard, wait) = (Instant::now(), WAITS.0);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAITS.1);
            match self.job().await {
                Ok(now) => {
                    if lost.is_some() && heard.elapsed() > Duration::from_secs(2) {
                        self.display.say("the server is back");
                    }
                    (job, heard) = (now, Instant::now());
                }
                Err(Lost::Refused(error)) => return Err(error),
                Err(Lost::Gone(why)) if heard.elapsed() > patience => {
                    bail!(
                        "{why}, for {} now; the job may go on without being watched",
                        crate::cli::duration(heard.elapsed().as_secs_f64())
                    );
                }
                Err(Lost::Gone(why)) => {
                    if lost.is_some() {
                        self.display.say(&format!("{why}; trying again"));
                    }
                }
            }
        }
    }

    /// The job as it is.
    async fn job(&self) -> Result<Job, Lost> {
        let request = self.admin.request(Method::GET, &format!("/admin/jobs/{}", segment(self.id)));
        let response = request.timeout(ANSWER).send().await.map_err(|error| gone(self.admin, &error))?;
        let body: Value = good(response).await?.json().await.map_err(|error| gone(self.admin, &error))?;
        serde_json::from_value(body)
            .map_err(|error| Lost::Refused(anyhow::anyhow!("the server's answer is no job: {error}")))
    }

    /// Shows what the event stream tells, until it ends or the job has.
    async fn events(&mut self, job: &mut Job) -> Result<(), Lost> {
        let path = format!("/admin/jobs/{}/events", segment(self.id));
        let mut request = self.admin.request(Method::GET, &path).header("accept", "text/event-stream");
        if let Some(last) = &self.last_event {
            request = request.header("last-event-id", last);
        }
        let response = tokio::time::timeout(SILENCE, request.send()).await;
        let response = response.map_err(|_| silent())?.map_err(|error| gone(self.admin, &error))?;
        let mut bytes = good(response).await?.bytes_stream();
        let mut stream = EventStream::default();
        while let Some(piece) = tokio::time::timeout(SILENCE, bytes.next()).await.map_err(|_| silent())? {
            let piece = piece.map_err(|error| gone(self.admin, &error))?;
            for event in stream.feed(&piece).map_err(Lost::Gone)? {
                if event.id.is_some() {
                    self.last_event = event.id;
                }
                if let Ok(told) = serde_json::from_str::<Value>(&event.data) {
                    if let Some(text) = told["text"].as_str() {
                        self.display.say(text);
                    }
                    update(job, told);
                    self.display.show(job);
                }
            }
            if job.ending().is_some() {
                return Ok(()); // the job itself is asked for once more: it has the result
            }
        }
        Ok(())
    }
}

/// Takes over what an event tells: a whole job, or some of its members.
fn update(job: &mut Job, told: Value) {
    let Value::Object(told) = told else { return };
    let told = match told.get("job") {
        Some(Value::Object(job)) => job.clone(),
        _ => told,
    };
    if let Some(status) = told.get("status").and_then(Value::as_str) {
        job.status = status.to_owned();
    }
    if let Some(stage) = told.get("stage") {
        job.stage = stage.as_str().map(str::to_owned);
    }
    if let Some(attempts) = told.get("attempts").and_then(Value::as_u64) {
        job.attempts = attempts;
    }
    if let Some(progress) = told.get("progress") {
        job.progress = serde_json::from_value(progress.clone()).unwrap_or_default();
    }
}

/// A good answer.
async fn good(response: Response) -> Result<Response, Lost> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(Lost::Gone(format!("the server answered {status}")));
    }
    match client::json(response).await {
        Err(error) => Err(Lost::Refused(error)),
        Ok(_) => Err(Lost::Refused(anyhow::anyhow!("the server answered {status}"))),
    }
}

fn gone(admin: &Admin, error: &reqwest::Error) -> Lost {
    let what = if error.is_connect() { "no connection" } else { "the connection ended" };
    Lost::Gone(format!("{what} ({})", admin.server.endpoint))
}

fn silent() -> Lost {
    Lost::Gone(format!("the server has said nothing for {} s", SILENCE.as_secs()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_may_tell_a_whole_job_or_a_part_of_it() {
        let mut job = Job { status: "queued".to_owned(), ..Job::default() };
        update(&mut job, json!({"status": "running", "stage": "dpo", "progress": {"done": 1, "total": 2}}));
        assert_eq!((job.status.as_str(), job.stage.as_deref()), ("running", Some("dpo")));
        update(&mut job, json!({"progress": {"done": 2, "total": 2}}));
        assert_eq!(job.progress.as_ref().unwrap().share(), Some(1.0));
        update(&mut job, json!({"job": {"status": "succeeded", "stage": null}}));
        assert_eq!((job.ending(), job.stage), (Some(Ending::Succeeded), None));
    }
}
