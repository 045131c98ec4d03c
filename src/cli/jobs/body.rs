//! From flags to the body of `POST /admin/jobs`. Only what was given goes in; the server knows the rest.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Kind {
    /// Train, compare with what is served, and serve the better one.
    Retrain(Box<Retrain>),
    /// Embed all documents anew.
    Reindex,
    /// Write the HNSW snapshot.
    Snapshot,
    /// Compare a bundle with another on collections.
    Evaluate(Evaluate),
    /// Bring in a bundle, checkpoint or adapter that was made elsewhere.
    Import(Import),
}

/// Flags of `retrain`.
#[derive(Args, Debug, Default)]
pub(super) struct Retrain {
    /// A recipe of the server's recipes folder, such as smoke or small.
    #[arg(long, conflicts_with = "recipe_file")]
    recipe: Option<String>,
    /// A recipe on this machine, which is sent.
    #[arg(long, value_name = "FILE")]
    recipe_file: Option<PathBuf>,
    /// Put a value over the recipe's, e.g. dpo.learning_rate=1e-5; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Only these stages, separated by commas.
    #[arg(long, value_delimiter = ',')]
    stages: Vec<String>,
    /// All rows of the report: the paper's ablations and the controls.
    #[arg(long)]
    ablations: bool,
    /// Train on this dataset, too; may be repeated.
    #[arg(long, value_name = "NAME")]
    dataset: Vec<String>,
    /// Train on the users' feedback, too.
    #[arg(long)]
    feedback: bool,
    /// Train on datasets and feedback alone, without the recipe's own sources.
    #[arg(long)]
    only: bool,
    /// The name of the bundle.
    #[arg(long)]
    name: Option<String>,
    /// Compare on this collection of the server's data folder; may be repeated.
    #[arg(long, value_name = "NAME")]
    collection: Vec<String>,
    /// Which judgments of the collections.
    #[arg(long)]
    split: Option<String>,
    /// At most so many queries a collection.
    #[arg(long)]
    max_queries: Option<u64>,
    /// How to expand while comparing: a mode (off, always, auto) or an `expansion` object as JSON.
    #[arg(long)]
    expansion: Option<String>,
    /// When to serve what was trained.
    #[arg(long, value_enum)]
    when: Option<When>,
    /// What decides, e.g. ndcg@10.
    #[arg(long)]
    metric: Option<String>,
    /// Of the collections those that decide; default: all. May be repeated.
    #[arg(long, value_name = "NAME")]
    decide_on: Vec<String>,
    /// Significance level.
    #[arg(long)]
    alpha: Option<f64>,
    /// How much worse it may be on one collection.
    #[arg(long)]
    max_regression: Option<f64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum When {
    /// When it is significantly better.
    Significant,
    /// When it is not worse.
    NotWorse,
    /// Whatever the comparison says.
    Always,
    /// Never; the bundle can be activated later.
    Never,
}

/// Flags of `evaluate`.
#[derive(Args, Debug)]
pub(super) struct Evaluate {
    /// The bundle; default: the active one.
    #[arg(long, value_name = "ID")]
    bundle: Option<String>,
    /// What it is compared with; default: the active one.
    #[arg(long, value_name = "ID")]
    against: Option<String>,
    /// A collection of the server's data folder; may be repeated.
    #[arg(long, value_name = "NAME", required = true)]
    collection: Vec<String>,
    /// Which judgments of the collections.
    #[arg(long)]
    split: Option<String>,
    /// At most so many queries a collection.
    #[arg(long)]
    max_queries: Option<u64>,
    /// How to expand: a mode (off, always, auto) or an `expansion` object as JSON.
    #[arg(long)]
    expansion: Option<String>,
    /// What is compared, e.g. ndcg@10.
    #[arg(long)]
    metric: Option<String>,
}

/// Flags of `import`.
#[derive(Args, Debug)]
pub(super) struct Import {
    /// A folder on the server's machine.
    path: String,
    /// What it holds.
    #[arg(long, value_enum)]
    what: What,
    /// The name of the bundle.
    #[arg(long)]
    name: Option<String>,
    /// Serve it afterwards.
    #[arg(long)]
    activate: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum What {
    /// A whole bundle.
    Bundle,
    /// An encoder's checkpoint.
    Encoder,
    /// A LoRA adapter for the encoder.
    EncoderAdapter,
    /// A language model's checkpoint.
    Expander,
    /// A LoRA adapter for the language model.
    ExpanderAdapter,
}

impl Kind {
    /// The body of the request.
    ///
    /// # Errors
    /// When a flag makes no sense, or the recipe can't be read.
    pub(super) fn body(&self) -> anyhow::Result<Value> {
        match self {
            Self::Reindex => Ok(json!({"kind": "reindex"})),
            Self::Snapshot => Ok(json!({"kind": "snapshot"})),
            Self::Retrain(retrain) => retrain.body(),
            Self::Evaluate(evaluate) => Ok(evaluate.body()),
            Self::Import(import) => Ok(import.body()),
        }
    }
}

impl Retrain {
    fn body(&self) -> anyhow::Result<Value> {
        let mut body = Members::new("retrain");
        body.text("recipe", self.recipe.as_deref());
        if let Some(path) = &self.recipe_file {
            body.add("recipe_toml", fs_err::read_to_string(path)?);
        }
        let overrides = self.set.iter().map(|set| override_of(set)).collect::<anyhow::Result<Map<_, _>>>()?;
        body.object("overrides", overrides);
        body.list("stages", &self.stages);
        body.flag("ablations", self.ablations);
        body.text("name", self.name.as_deref());

        let mut pairs = Members::default();
        pairs.list("datasets", &self.dataset);
        pairs.flag("feedback", self.feedback);
        pairs.flag("only", self.only);
        body.object("pairs", pairs.0);

        let mut evaluate = Members::default();
        evaluate.list("collections", &self.collection);
        evaluate.text("split", self.split.as_deref());
        evaluate.number("max_queries", self.max_queries.map(Value::from));
        evaluate.number("expansion", self.expansion.as_deref().map(json_or_text));
        body.object("evaluate", evaluate.0);

        let mut promotion = Members::default();
        promotion.text("when", self.when.as_ref().map(name_of).as_deref());
        promotion.text("metric", self.metric.as_deref());
        promotion.list("collections", &self.decide_on);
        promotion.number("alpha", self.alpha.map(Value::from));
        promotion.number("max_regression", self.max_regression.map(Value::from));
        body.object("promotion", promotion.0);
        Ok(Value::Object(body.0))
    }
}

impl Evaluate {
    fn body(&self) -> Value {
        let mut body = Members::new("evaluate");
        body.text("bundle", self.bundle.as_deref());
        body.text("against", self.against.as_deref());
        body.list("collections", &self.collection);
        body.text("split", self.split.as_deref());
        body.number("max_queries", self.max_queries.map(Value::from));
        body.number("expansion", self.expansion.as_deref().map(json_or_text));
        body.text("metric", self.metric.as_deref());
        Value::Object(body.0)
    }
}

impl Import {
    fn body(&self) -> Value {
        let mut body = Members::new("import");
        body.text("path", Some(&self.path));
        body.text("what", Some(&name_of(&self.what)));
        body.text("name", self.name.as_deref());
        body.flag("activate", self.activate);
        Value::Object(body.0)
    }
}

/// A body from a file, as it is.
///
/// # Errors
/// When the file can't be read or is no JSON object.
pub(super) fn from_file(path: &Path) -> anyhow::Result<Value> {
    let body: Value = serde_json::from_slice(&fs_err::read(path)?)
        .with_context(|| format!("{} is not JSON", path.display()))?;
    if !body.is_object() {
        bail!("{} holds no JSON object; write {{\"kind\": \"retrain\", …}}", path.display());
    }
    Ok(body)
}

/// The members of an object that were given.
#[derive(Default)]
struct Members(Map<String, Value>);

impl Members {
    fn new(kind: &str) -> Self {
        Self(Map::from_iter([("kind".to_owned(), Value::from(kind))]))
    }

    fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    fn number(&mut self, name: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    fn list(&mut self, name: &str, values: &[String]) {
        if !values.is_empty() {
            self.add(name, values.to_vec());
        }
    }

    fn flag(&mut self, name: &str, on: bool) {
        if on {
            self.add(name, true);
        }
    }

    fn object(&mut self, name: &str, members: Map<String, Value>) {
        if !members.is_empty() {
            self.add(name, members);
        }
    }
}

fn override_of(set: &str) -> anyhow::Result<(String, Value)> {
    match set.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), json_or_text(value.trim())))
        }
        _ => bail!("--set `{set}` is not KEY=VALUE; write e.g. dpo.learning_rate=1e-5"),
    }
}

fn json_or_text(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}

/// A value as it is written on the command line, which is the wire's name.
fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Start {
        #[command(subcommand)]
        kind: Kind,
    }

    fn body(line: &str) -> Value {
        let start =
            Start::try_parse_from(format!("start {line}").split(' ')).unwrap_or_else(|e| panic!("{e}"));
        start.kind.body().unwrap()
    }

    #[test]
    fn only_what_was_given_is_sent() {
        assert_eq!(body("retrain --recipe smoke"), json!({"kind": "retrain", "recipe": "smoke"}));
        assert_eq!(body("reindex"), json!({"kind": "reindex"}));
        assert_eq!(body("snapshot"), json!({"kind": "snapshot"}));
    }

    #[test]
    fn every_flag_has_its_member() {
        let line = "retrain --recipe small --set dpo.epochs=1 --set data.name=a=b --set machine.device=cpu --stages pairs,dpo --ablations \
            --dataset mine --dataset other --feedback --only --name n --collection scifact --collection nq --split dev \
            --max-queries 50 --expansion off --when not_worse --metric ndcg@10 --decide-on nq --alpha 0.01 --max-regression 0.02";
        assert_eq!(
            body(line),
            json!({
                "kind": "retrain", "recipe": "small", "name": "n", "stages": ["pairs", "dpo"], "ablations": true,
                "overrides": {"dpo.epochs": 1, "data.name": "a=b", "machine.device": "cpu"},
                "pairs": {"datasets": ["mine", "other"], "feedback": true, "only": true},
                "evaluate": {"collections": ["scifact", "nq"], "split": "dev", "max_queries": 50, "expansion": "off"},
                "promotion": {"when": "not_worse", "metric": "ndcg@10", "collections": ["nq"], "alpha": 0.01, "max_regression": 0.02},
            })
        );
        assert_eq!(
            body("evaluate --bundle b --against a --collection nq --expansion {\"mode\":\"auto\"}"),
            json!({"kind": "evaluate", "bundle": "b", "against": "a", "collections": ["nq"], "expansion": {"mode": "auto"}})
        );
        assert_eq!(
            body("import /tmp/x --what encoder_adapter --activate"),
            json!({"kind": "import", "path": "/tmp/x", "what": "encoder_adapter", "activate": true})
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(override_of("dpo.epochs").unwrap_err().to_string().contains("KEY=VALUE"));
        assert!(Start::try_parse_from(["start", "retrain", "--recipe", "a", "--recipe-file", "b"]).is_err());
        assert!(Start::try_parse_from(["start", "retrain", "--when", "sometimes"]).is_err());
        assert!(Start::try_parse_from(["start", "evaluate"]).is_err());
    }
}
