//! `POST /search` as server-sent events: the raw hits, the passages as they are written, and the answer.
//!
//! The search runs in a task of its own, which ends with the stream: a client that goes away takes its search, and with that
//! a generation that nobody else waits for, along. A client that reads slowly holds neither the search nor its permit up.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, stream};
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::JoinHandle,
};
use tracing::Instrument;

use super::{
    AppState,
    layers::RequestContext,
    problem::{Code, Problem},
};
use crate::{
    bundle::Bundle,
    search::{
        answer::SearchAnswer,
        check::CheckedSearch,
        watch::{Piece, SearchEvent, Watcher},
    },
};

/// A line of comment after so much silence, so that proxies keep the connection.
const ALIVE: Duration = Duration::from_secs(5);
/// nginx would hold events back until it has a buffer full of them.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A search that was let in.
pub(super) struct Admitted {
    pub(super) state: Arc<AppState>,
    pub(super) context: RequestContext,
    pub(super) bundle: Arc<Bundle>,
    pub(super) search: CheckedSearch,
    pub(super) permit: OwnedSemaphorePermit,
    /// The query, where feedback may come for it.
    pub(super) remembered: Option<String>,
}

/// Whether the client asks for events: `text/event-stream` among what it accepts.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_events = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("text/event-stream"));
        let is_refused = parts.any(|part| {
            part.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok()).is_some_and(|q| q == 0.0)
        });
        is_events && !is_refused
    })
}

/// Runs the search and tells about it.
pub(super) fn respond(admitted: Admitted) -> Response {
    let request_id = admitted.context.id.clone();
    let (watcher, events) = Watcher::new();
    let search = tokio::spawn(answer(admitted, watcher).in_current_span());
    let telling = Telling {
        events,
        early: VecDeque::new(),
        stage: Stage::Searching,
        search: Running(search),
        request_id,
    };
    let keep_alive = KeepAlive::new().interval(ALIVE).text("still here");
    let mut response = Sse::new(tell(telling)).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(BUFFERING, HeaderValue::from_static("no"));
    response
}

async fn answer(admitted: Admitted, watcher: Watcher) -> Result<Box<SearchAnswer>, Problem> {
    let Admitted { state, context, bundle, search, permit, remembered } = admitted;
    let searched = state.service.search_watched(&bundle, search, context.started, &context.id, &watcher);
    let answer = Box::pin(searched).await?;
    drop(permit);
    if let Some(query) = remembered {
        state.feedback.remember(&query, &answer);
    }
    Ok(Box::new(answer))
}

/// The search's task, which ends when nobody waits for it.
struct Running(JoinHandle<Result<Box<SearchAnswer>, Problem>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a stream of events is made of.
struct Telling {
    events: mpsc::UnboundedReceiver<SearchEvent>,
    /// Pieces that were there before the raw hits, such as those of a cached passage.
    early: VecDeque<Piece>,
    stage: Stage,
    search: Running,
    request_id: Arc<str>,
}

/// How far the telling is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The raw hits are not there yet.
    Searching,
    /// They were told.
    Writing,
    /// Everything was told.
    Done,
}

/// `raw`, `expansion` while the search runs, then `answer` or `error`, and the end.
fn tell(telling: Telling) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(telling, |mut telling| async move {
        let event = next(&mut telling).await?;
        Some((Ok(event), telling))
    })
}

async fn next(telling: &mut Telling) -> Option<Event> {
    while telling.stage != Stage::Done {
        if telling.stage == Stage::Writing
            && let Some(piece) = telling.early.pop_front()
        {
            return Some(named("expansion", &piece));
        }
        match telling.events.recv().await {
            Some(SearchEvent::Raw(raw)) => {
                telling.stage = Stage::Writing;
                return Some(named("raw", &raw));
            }
            Some(SearchEvent::Piece(piece)) => telling.early.push_back(piece),
            // The watcher is gone, and the search with it.
            None => {
                telling.stage = Stage::Done;
                return Some(last(telling).await);
            }
        }
    }
    None
}

async fn last(telling: &mut Telling) -> Event {
    let problem = match (&mut telling.search.0).await {
        Ok(Ok(answer)) => return named("answer", &answer),
        Ok(Err(problem)) => problem,
        Err(error) => {
            tracing::error!(%error, request_id = %telling.request_id, "a streamed search broke");
            Problem::new(Code::Internal, "a bug in the server; it is in its log under this request's id")
        }
    };
    named("error", &problem.body(&telling.request_id))
}

fn named(name: &str, data: &impl Serialize) -> Event {
    let event = Event::default().event(name);
    match serde_json::to_string(data) {
        Ok(json) => event.data(json),
        Err(error) => {
            tracing::error!(%error, name, "an event can't be written as JSON");
            event.data("null")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_for_those_who_accept_them() {
        let wanted = |accept: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(header::ACCEPT, HeaderValue::from_static(value));
            }
            is_wanted(&headers)
        };
        assert!(wanted(&["text/event-stream"]));
        assert!(wanted(&["application/json;q=0.5, Text/Event-Stream; q=0.9"]));
        assert!(wanted(&["application/problem+json", "text/event-stream"]));
        for accept in ["*/*", "text/*", "application/json", "text/event-stream;q=0", "text/event-streams"] {
            assert!(!wanted(&[accept]), "{accept}");
        }
        assert!(!wanted(&[]));
    }
}
