//! Texts that a language model writes, query by query: candidates, answers, expansions.
//!
//! Each query that is finished is one line of the journal, so that an interrupted stage goes on where it was. A line
//! carries a fingerprint of everything that it follows from (prompt, sampling, seed, weights); the finished file is in
//! the order of the queries, whatever the order in which they were written.

use std::path::Path;
use std::sync::Arc;

use expandr_models::expander::PromptTemplate;
use expandr_models::{FinishReason, Sampling};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Context, queries::queries};
use crate::folder::{Journal, JournalLine, JsonLines, LineFile};
use crate::pairs::{Part, query_id};
use crate::plan::{Work, canonical};
use crate::progress::Meter;
use crate::seed::{draw, sha256};
use crate::steps::Model;
use crate::writer::Writer;
use crate::{Error, Result};

/// A line of candidates.jsonl, answers.jsonl, expansions.jsonl and test-expansions.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WrittenLine {
    /// The query's id ([`query_id`]).
    pub id: String,
    /// A fingerprint of everything that the texts follow from.
    #[serde(default)]
    pub of: String,
    /// What was asked.
    pub query: String,
    /// What was written: one text for answers, `expansions.count` for expansions, one for each temperature and sample for
    /// candidates.
    pub texts: Vec<WrittenText>,
}

/// A text as the model wrote it; lead-ins are taken away when it is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "GivenText")]
pub struct WrittenText {
    /// The text.
    pub text: String,
    /// How it was drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Tokens behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Whether the model ended its turn; otherwise `max_tokens` did.
    pub complete: bool,
}

/// A text may also stand for itself, in files that were made elsewhere.
#[derive(Deserialize)]
#[serde(untagged)]
enum GivenText {
    Plain(String),
    Whole {
        text: String,
        temperature: Option<f64>,
        tokens: Option<usize>,
        #[serde(default = "yes")]
        complete: bool,
    },
}

fn yes() -> bool {
    true
}

impl From<GivenText> for WrittenText {
    fn from(given: GivenText) -> Self {
        match given {
            GivenText::Plain(text) => Self { text, temperature: None, tokens: None, complete: true },
            GivenText::Whole { text, temperature, tokens, complete } => {
                Self { text, temperature, tokens, complete }
            }
        }
    }
}

impl JournalLine for WrittenLine {
    fn id(&self) -> &str {
        &self.id
    }
    fn of(&self) -> &str {
        &self.of
    }
}

/// A query to write for.
struct Request {
    id: String,
    query: String,
    prompt: String,
}

type Requests = Box<dyn Iterator<Item = Result<Request>> + Send>;

/// What a generation stage writes.
struct Job<'a> {
    context: &'a Context<'a>,
    template: PromptTemplate,
    model: Model,
    /// (temperature, sample number); the seed depends on both.
    draws: Vec<(f64, usize)>,
    top_p: f64,
    max_tokens: usize,
    /// Settings and weights, of which every line depends.
    basis: String,
}

/// Writes what is missing and puts the lines into the order of the queries.
pub(crate) async fn run(context: &Context<'_>) -> Result<Value> {
    let job = Job::new(context)?;
    let mut journal = Journal::open(&context.work().join("journal.jsonl"))?;
    let finished = context.own(0);
    if finished.is_file() {
        journal.import(&finished)?;
    }
    let mut total = 0;
    let mut done = 0;
    for request in job.requests()? {
        let request = request?;
        total += 1;
        done += usize::from(journal.has(&request.id, &job.fingerprint(&request)));
    }
    if total == 0 {
        return Err(Error::Stage {
            stage: context.name.to_owned(),
            detail: "there is no query to write for; see `data` in the recipe, and the counts of stage pairs"
                .into(),
        });
    }
    let mut summary = Map::new();
    if done < total {
        let writer = context.steps.writer(&job.model).await?;
        summary.insert("written_by".into(), json!(writer.id()));
        if !writer.honours_seed() {
            context.note("the language model doesn't honour seeds, so these texts can't be made again alike");
        }
        job.write_missing(&writer, &mut journal, total, done).await?;
    }
    let (texts, tokens, cut) = job.finish(&mut journal, &finished)?;
    summary.insert("queries".into(), json!(total));
    summary.insert("kept_from_before".into(), json!(done));
    summary.insert("texts".into(), json!(texts));
    summary.insert("tokens".into(), json!(tokens));
    summary.insert("cut_share".into(), json!(cut as f64 / texts.max(1) as f64));
    Ok(Value::Object(summary))
}

/// Takes lines that were made elsewhere as they are: they get the fingerprints of this run. What they lack is written
/// when the stage runs. How many queries they cover.
pub(crate) fn adopt(context: &Context<'_>) -> Result<usize> {
    let job = Job::new(context)?;
    let given = context.own(0);
    let mut lines: std::collections::HashMap<String, WrittenLine> = std::collections::HashMap::new();
    for line in JsonLines::<AdoptedLine>::open(&given)? {
        let line = line?;
        let id = line.id.unwrap_or_else(|| query_id(&line.query));
        if line.texts.is_empty() {
            return Err(Error::Input(format!(
                "{}: query {id:?} has no text; remove its line",
                given.display()
            )));
        }
        lines.insert(id.clone(), WrittenLine { id, of: String::new(), query: line.query, texts: line.texts });
    }
    let mut journal = Journal::open(&context.work().join("journal.jsonl"))?;
    let mut adopted = 0;
    for request in job.requests()? {
        let request = request?;
        if let Some(line) = lines.remove(&request.id) {
            adopted += 1;
            journal.append(&WrittenLine { of: job.fingerprint(&request), ..line })?;
        }
    }
    if adopted == 0 {
        return Err(Error::Stage {
            stage: context.name.to_owned(),
            detail: format!("{} has no line for any query of this run", given.display()),
        });
    }
    if !lines.is_empty() {
        context.note(&format!(
            "{} lines are of queries that this run doesn't have; they are left out",
            lines.len()
        ));
    }
    Ok(adopted)
}

#[derive(Deserialize)]
struct AdoptedLine {
    id: Option<String>,
    #[serde(default)]
    query: String,
    texts: Vec<WrittenText>,
}

impl<'a> Job<'a> {
    fn new(context: &'a Context<'a>) -> Result<Self> {
        let recipe = context.recipe;
        let (writer, draws, top_p, max_tokens) = match &context.node.work {
            Work::Candidates { writer, .. } => {
                let settings = &recipe.candidates;
                let samples = |temperature: &f64| {
                    let temperature = *temperature;
                    (0..settings.samples).map(move |sample| (temperature, sample))
                };
                let draws = settings.temperatures.iter().flat_map(samples).collect();
                (*writer, draws, settings.top_p, settings.max_tokens)
            }
            Work::Answers { writer, .. } => {
                let settings = &recipe.answers;
                (*writer, vec![(settings.temperature, 0)], settings.top_p, settings.max_tokens)
            }
            Work::Expansions { writer, .. } | Work::TestExpansions { writer } => {
                let settings = &recipe.expansions;
                let draws = (0..settings.count).map(|sample| (settings.temperature, sample)).collect();
                (*writer, draws, settings.top_p, settings.max_tokens)
            }
            other => return Err(Error::Input(format!("stage {} writes no texts", other.stage().name()))),
        };
        let template = match &context.node.work {
            Work::Answers { .. } => PromptTemplate::with_slots(&recipe.expander.answer_prompt, 2)?,
            _ => PromptTemplate::for_query(&recipe.expander.prompt)?,
        };
        let (model, weights) = context.expander(writer);
        let basis = sha256(format!("{}\0{weights}", canonical(&context.node.settings)).as_bytes());
        Ok(Self { context, template, model, draws, top_p, max_tokens, basis })
    }

    /// The queries in their order.
    fn requests(&self) -> Result<Requests> {
        let template = self.template.clone();
        let output = |node| self.context.output(node, 0);
        let (pairs, wanted, with_document): (_, fn(Part) -> bool, bool) = match &self.context.node.work {
            Work::Candidates { pairs, .. } => (output(pairs.0), Part::trains_expander, false),
            Work::Answers { pairs, .. } => (output(pairs.0), Part::trains_expander, true),
            Work::Expansions { pairs, .. } => (output(pairs.0), Part::trains_retriever, false),
            _ => return self.test_requests(),
        };
        Ok(Box::new(queries(&pairs, wanted)?.map(move |pair| {
            let pair = pair?;
            let values = [pair.query.as_str(), pair.positive.as_str()];
            let prompt = template.render(if with_document { &values } else { &values[..1] })?;
            Ok(Request { id: pair.id, query: pair.query, prompt })
        })))
    }

    /// The collections' queries, each once.
    fn test_requests(&self) -> Result<Requests> {
        let mut seen = std::collections::HashSet::new();
        let mut requests = Vec::new();
        for collection in crate::collections::open(self.context.recipe)? {
            for query in collection.queries {
                let id = query_id(&query.text);
                if seen.insert(id.clone()) {
                    let prompt = self.template.render(&[&query.text])?;
                    requests.push(Ok(Request { id, query: query.text, prompt }));
                }
            }
        }
        Ok(Box::new(requests.into_iter()))
    }

    fn fingerprint(&self, request: &Request) -> String {
        let text = format!("{}\0{}", self.basis, request.prompt);
        sha256(text.as_bytes())[..16].to_owned()
    }

    /// One seed a sample, from run, stage, query, temperature and number, so that neither order nor concurrency
    /// matters.
    fn samplings(&self, id: &str) -> Vec<Sampling> {
        let stage = self.context.node.stage().name();
        let sampling = |(temperature, sample): &(f64, usize)| Sampling {
            max_tokens: self.max_tokens,
            temperature: *temperature as f32,
            top_p: self.top_p as f32,
            seed: Some(draw(
                self.context.recipe.seed,
                &["sample", stage, id, &temperature.to_string(), &sample.to_string()],
            )),
        };
        self.draws.iter().map(sampling).collect()
    }

    async fn write_missing(
        &self,
        writer: &Arc<dyn Writer>,
        journal: &mut Journal,
        total: usize,
        done: usize,
    ) -> Result<()> {
        let mut missing = Vec::new();
        for request in self.requests()? {
            let request = request?;
            if !journal.has(&request.id, &self.fingerprint(&request)) {
                missing.push(request.id);
            }
        }
        let missing: std::collections::HashSet<String> = missing.into_iter().collect();
        let requests = self.requests()?.filter(|request| match request {
            Ok(request) => missing.contains(&request.id),
            Err(_) => true,
        });
        // One prompt more than fill the engine, so that it is never without work.
        let prompts = writer.concurrency().div_ceil(self.draws.len()) + 1;
        let mut meter = Meter::new(self.context.observer, self.context.name, "queries", total, done);
        let start = std::time::Instant::now();
        let mut tokens = 0;
        let mut lines = futures::stream::iter(requests)
            .map(|request| async move { self.write(writer.as_ref(), request?).await })
            .buffer_unordered(prompts);
        while let Some(line) = lines.next().await {
            let line = line?;
            tokens += line.texts.iter().filter_map(|text| text.tokens).sum::<usize>();
            journal.append(&line)?;
            let speed = tokens as f64 / start.elapsed().as_secs_f64();
            meter.add_with(1, Map::from_iter([("tokens_per_second".to_owned(), json!(speed))]));
        }
        Ok(())
    }

    async fn write(&self, writer: &dyn Writer, request: Request) -> Result<WrittenLine> {
        let samplings = self.samplings(&request.id);
        let written = writer.write(&request.prompt, &samplings).await.map_err(|error| Error::Stage {
            stage: self.context.name.to_owned(),
            detail: format!(
                "query {:?}: {error}; what is finished is kept, run the same command again to go on",
                request.query
            ),
        })?;
        let texts = written.into_iter().zip(&self.draws).map(|(generation, (temperature, _))| WrittenText {
            text: generation.text,
            temperature: Some(*temperature),
            tokens: Some(generation.output_tokens),
            complete: generation.finish_reason == Some(FinishReason::Stop),
        });
        let of = self.fingerprint(&request);
        Ok(WrittenLine { of, texts: texts.collect(), id: request.id, query: request.query })
    }

    /// Writes the finished file; how many texts and tokens there are, and how many texts were cut.
    fn finish(&self, journal: &mut Journal, path: &Path) -> Result<(usize, usize, usize)> {
        let mut file = LineFile::create(path)?;
        for request in self.requests()? {
            let request = request?;
            journal.copy(&request.id, &self.fingerprint(&request), &mut file)?;
        }
        file.finish()?;
        let (mut texts, mut tokens, mut cut) = (0, 0, 0);
        for line in JsonLines::<WrittenLine>::open(path)? {
            for text in line?.texts {
                texts += 1;
                tokens += text.tokens.unwrap_or(0);
                cut += usize::from(!text.complete);
            }
        }
        Ok((texts, tokens, cut))
    }
}
