//! From a run folder of `expandr train` to a bundle's folder.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::Context;
use expandr_models::{
    bundle::{self, Defaults, EncoderPart, ExpanderPart, ExpansionDefault, Manifest},
    expander::Q2D,
    gate::GATE_FILE,
    trainable::{ADAPTER_FILES, NewFolder},
    weights::sha256_of_file,
};
use expandr_training::{QueryWeight, Recipe, Stage, finished_stages};
use serde_json::{Value, json};

use super::now;

const RECIPE: &str = "recipe.toml";
/// The report for people.
const REPORT: &str = "report.md";
/// What a run was trained on, in the order in which it came about.
const DATA: [(Stage, &str); 3] = [
    (Stage::Pairs, "pairs.jsonl"),
    (Stage::Preferences, "preferences.jsonl"),
    (Stage::Examples, "examples.jsonl"),
];

/// What a run folder doesn't say.
#[derive(Clone, Debug, Default)]
pub struct PackageFacts {
    /// What people call the bundle; none: the run folder's name.
    pub name: Option<String>,
    /// The ids of the bundles that it comes from.
    pub parents: Vec<String>,
    /// Whether a search that doesn't say is expanded; none: the service decides.
    pub expansion: Option<ExpansionDefault>,
}

/// Makes a bundle of a finished run: the folder `out`, which appears whole or not at all and replaces one that is there.
///
/// What is taken is what the recipe's stages have left; files of an earlier recipe stay where they are. The encoder is the
/// trained one (`encoder/`; its adapter alone where it was trained with one beside a model that the recipe names), else the
/// one that the recipe names. The expander is the base model that the recipe names with the run's adapter beside it; where
/// that was trained on another model than the named one (after a warm-up), the merged model. `gate.json` comes along, and
/// the report if it is of these models; the query's weight in the report becomes the default, and the recipe's way of
/// writing expansions the default way. Names in the recipe that are paths of this machine become absolute.
///
/// # Errors
/// When `run` is no finished run ([`finished_stages`]), or the disk fails.
pub fn package(run: &Path, out: &Path, facts: PackageFacts) -> anyhow::Result<Manifest> {
    let recipe = Recipe::load(&run.join(RECIPE), &[])
        .with_context(|| format!("{}: not the folder of a training run", run.display()))?;
    let stages = finished_stages(run, &recipe).with_context(|| {
        format!("{}: the run is not finished, so there is no bundle of it", run.display())
    })?;
    assemble(&Finished { run, recipe: &recipe, stages }, out, facts)
}

/// A run that makes a bundle.
struct Finished<'a> {
    run: &'a Path,
    recipe: &'a Recipe,
    /// What it has done.
    stages: BTreeSet<Stage>,
}

impl Finished<'_> {
    fn has(&self, stage: Stage) -> bool {
        self.stages.contains(&stage)
    }
}

fn assemble(finished: &Finished<'_>, out: &Path, facts: PackageFacts) -> anyhow::Result<Manifest> {
    let Finished { run, recipe, .. } = finished;
    let new = NewFolder::create(out)?;
    let folder = new.path();
    let encoder = encoder(finished, folder)?;
    let expander = expander(finished, folder)?;
    let name = facts.name.or_else(|| Some(run.file_name()?.to_string_lossy().into_owned()));
    let name = name.context("the bundle needs a name; give one with --name")?;
    let mut manifest = Manifest::new(&name, &now(), encoder, Some(expander));
    manifest.parents = facts.parents;
    manifest.prompt = Some(recipe.expander.prompt.clone()).filter(|prompt| prompt != Q2D);
    manifest.defaults = Defaults { expansion: facts.expansion, ..defaults(run, recipe)? };
    if finished.has(Stage::Gate) {
        fs_err::copy(run.join(GATE_FILE), folder.join(GATE_FILE))?;
        manifest.gate = Some(GATE_FILE.into());
    }
    if finished.has(Stage::Report) {
        fs_err::copy(run.join(REPORT), folder.join(REPORT))?;
    }
    fs_err::copy(run.join(RECIPE), folder.join(RECIPE))?;
    manifest.recipe = Some(RECIPE.into());
    for (stage, file) in DATA {
        if finished.has(stage) {
            manifest.data.insert(file.into(), sha256_of_file(&run.join(file))?);
        }
    }
    manifest.evaluation = if finished.has(Stage::Report) { evaluation(run)? } else { None };
    bundle::write(folder, &mut manifest)?;
    new.finish()?;
    Ok(manifest)
}

fn encoder(finished: &Finished<'_>, folder: &Path) -> anyhow::Result<EncoderPart> {
    let Finished { run, recipe, .. } = finished;
    let adapter = run.join("encoder").join("adapter");
    if finished.has(Stage::Contrastive) && recipe.encoder.layers.is_none() && has_adapter(&adapter) {
        copy_adapter(&adapter, &folder.join("encoder-adapter"))?;
        let adapter = Some("encoder-adapter".into());
        return Ok(EncoderPart { model: named(&recipe.encoder.model)?, adapter });
    }
    for (stage, made) in [(Stage::Contrastive, "encoder"), (Stage::BaseEncoder, "base-encoder")] {
        if finished.has(stage) {
            copy_tree(&run.join(made), &folder.join("encoder"))?;
            return Ok(EncoderPart { model: "encoder".into(), adapter: None });
        }
    }
    Ok(EncoderPart { model: named(&recipe.encoder.model)?, adapter: None })
}

fn expander(finished: &Finished<'_>, folder: &Path) -> anyhow::Result<ExpanderPart> {
    let Finished { run, recipe, .. } = finished;
    let adapter = run.join("adapter");
    let base = named(&recipe.expander.model)?;
    if finished.has(Stage::Dpo) && has_adapter(&adapter) && !recipe.warm_up.enabled {
        copy_adapter(&adapter, &folder.join("expander-adapter"))?;
        let adapter = Some("expander-adapter".into());
        return Ok(ExpanderPart { model: base, adapter, remote_model: None });
    }
    for (stage, made) in [(Stage::Merge, "expander"), (Stage::WarmExpander, "warm-expander")] {
        if finished.has(stage) {
            copy_tree(&run.join(made), &folder.join("expander"))?;
            return Ok(ExpanderPart { model: "expander".into(), adapter: None, remote_model: None });
        }
    }
    Ok(ExpanderPart { model: base, adapter: None, remote_model: None })
}

fn has_adapter(folder: &Path) -> bool {
    ADAPTER_FILES.iter().all(|file| folder.join(file).is_file())
}

fn copy_adapter(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs_err::create_dir_all(to)?;
    for file in ADAPTER_FILES {
        fs_err::copy(from.join(file), to.join(file))?;
    }
    Ok(())
}

/// A path of this machine becomes absolute, so that it means the same wherever the server is started; other names stay.
fn named(model: &str) -> anyhow::Result<String> {
    let path = Path::new(model);
    if !model.contains('/') || !path.exists() {
        return Ok(model.to_owned());
    }
    let absolute = fs_err::canonicalize(path)?;
    absolute.to_str().map(str::to_owned).with_context(|| format!("{}: not UTF-8", absolute.display()))
}

fn defaults(run: &Path, recipe: &Recipe) -> anyhow::Result<Defaults> {
    let expansions = &recipe.expansions;
    let greedy = expansions.temperature == 0.0;
    Ok(Defaults {
        expansion: None,
        query_weight: query_weight(run, recipe)?,
        count: (expansions.count > 1).then_some(expansions.count),
        max_tokens: Some(expansions.max_tokens),
        temperature: Some(expansions.temperature as f32),
        top_p: (!greedy).then_some(expansions.top_p as f32),
        joint_encoding: expansions.joint_encoding.then_some(true),
    })
}

/// The weight that the run's report was made with: the recipe's, or the one that did best on the development part.
fn query_weight(run: &Path, recipe: &Recipe) -> anyhow::Result<Option<f32>> {
    if let QueryWeight::Fixed(weight) = recipe.evaluation.query_weight {
        return Ok(Some(weight as f32));
    }
    let path = run.join("weight.json");
    let Some(chosen) = json_if_there(&path)? else { return Ok(None) };
    let weight = chosen["query_weight"].as_f64();
    let weight = weight.with_context(|| format!("{}: it has no `query_weight`", path.display()))?;
    Ok(Some(weight as f32))
}

/// The report's figures, without those of single queries.
fn evaluation(run: &Path) -> anyhow::Result<Option<Value>> {
    let Some(report) = json_if_there(&run.join("report.json"))? else { return Ok(None) };
    let rows = report["rows"].as_array().cloned().unwrap_or_default();
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let collections = row["collections"].as_array().cloned().unwrap_or_default();
            let means: serde_json::Map<String, Value> = collections
                .iter()
                .filter_map(|scores| Some((scores["name"].as_str()?.to_owned(), scores["mean"].clone())))
                .collect();
            json!({"name": row["name"], "average": row["average"], "collections": means})
        })
        .collect();
    Ok(Some(json!({ "rows": rows, "comparisons": report["comparisons"] })))
}

fn json_if_there(path: &Path) -> anyhow::Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let value = serde_json::from_slice(&fs_err::read(path)?);
    value.map(Some).with_context(|| format!("{}: not JSON; do its stage again", path.display()))
}

/// Copies a folder with everything in it.
fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut open: Vec<(PathBuf, PathBuf)> = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = open.pop() {
        fs_err::create_dir_all(&to)?;
        for entry in fs_err::read_dir(&from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if fs_err::metadata(entry.path())?.is_dir() {
                open.push((entry.path(), target));
            } else {
                fs_err::copy(entry.path(), target)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(run: &Path, name: &str, text: &str) {
        let path = run.join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }

    fn run(recipe: &str) -> tempfile::TempDir {
        let run = tempfile::tempdir().unwrap();
        write(run.path(), "recipe.toml", recipe);
        for file in ["encoder/config.json", "encoder/1_Pooling/config.json", "expander/config.json"] {
            write(run.path(), file, "{}");
        }
        for file in ADAPTER_FILES {
            write(run.path(), &format!("adapter/{file}"), "{}");
        }
        write(run.path(), "adapter/optimizer.safetensors", "not the adapter's");
        write(run.path(), "pairs.jsonl", "abc");
        write(run.path(), "weight.json", r#"{"query_weight": 0.65, "tried": []}"#);
        let report = r#"{"recipe": {}, "comparisons": [], "rows": [{"name": "expandr", "average": {"ndcg@10": 0.5},
            "collections": [{"name": "c", "mean": {"ndcg@10": 0.5}, "queries": {"ndcg@10": {"q": 1}}}]}]}"#;
        write(run.path(), "report.json", report);
        write(run.path(), "report.md", "| row |");
        run
    }

    /// The bundle of a run that has done all that the recipe asks for.
    fn bundle_of(run: &tempfile::TempDir, out: &Path, facts: PackageFacts) -> Manifest {
        let recipe = Recipe::load(&run.path().join(RECIPE), &[]).unwrap();
        let stages =
            [Stage::Pairs, Stage::Dpo, Stage::Merge, Stage::Contrastive, Stage::Weight, Stage::Report];
        assemble(&Finished { run: run.path(), recipe: &recipe, stages: stages.into() }, out, facts).unwrap()
    }

    const RECIPE_TEXT: &str = "[expander]\nmodel = \"small\"\nprompt = \"Answer: {}\"\n[encoder]\nmodel = \"mini\"\n\
                               [expansions]\ntemperature = 0.8\ncount = 4\nmax_tokens = 48\njoint_encoding = true\n[evaluation]\nquery_weight = \"dev\"\n\
                               [[data.sources]]\nname = \"s\"\nformat = \"pairs\"\npath = \"p.jsonl\"\n";

    #[test]
    fn a_run_becomes_a_bundle_that_proves_itself() {
        let run = run(RECIPE_TEXT);
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("bundle");
        let expansion = Some(ExpansionDefault::Off);
        let facts = PackageFacts { name: Some("first".into()), parents: vec!["bundle-1".into()], expansion };
        let manifest = bundle_of(&run, &out, facts);
        assert_eq!(bundle::read(&out).unwrap(), manifest);
        bundle::prove(&out, &manifest).unwrap();
        assert_eq!(manifest.encoder.model, "encoder");
        let expander = manifest.expander.as_ref().unwrap();
        assert_eq!(
            (expander.model.as_str(), expander.adapter.as_deref()),
            ("small", Some("expander-adapter"))
        );
        assert_eq!(manifest.prompt.as_deref(), Some("Answer: {}"));
        let Defaults { query_weight, count, max_tokens, temperature, top_p, expansion, joint_encoding } =
            manifest.defaults;
        assert_eq!(
            (query_weight, max_tokens, count, temperature),
            (Some(0.65), Some(48), Some(4), Some(0.8))
        );
        assert_eq!((top_p, expansion, joint_encoding), (Some(0.9), Some(ExpansionDefault::Off), Some(true)));
        assert_eq!(
            (manifest.name.as_str(), manifest.parents.len(), manifest.gate.is_none()),
            ("first", 1, true)
        );
        let pairs = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(manifest.data["pairs.jsonl"], pairs);
        let figures = manifest.evaluation.as_ref().unwrap();
        assert_eq!(figures["rows"][0]["collections"]["c"]["ndcg@10"], 0.5);
        assert!(!figures.to_string().contains("queries"), "{figures}");
        assert!(!manifest.files.keys().any(|file| file.contains("optimizer")), "{:?}", manifest.files);
        assert!(manifest.files.contains_key("encoder/1_Pooling/config.json"));
    }

    #[test]
    fn an_encoder_trained_with_an_adapter_is_its_adapter() {
        let run = run(RECIPE_TEXT);
        for file in ADAPTER_FILES {
            write(run.path(), &format!("encoder/adapter/{file}"), "{}");
        }
        let out = tempfile::tempdir().unwrap();
        let manifest = bundle_of(&run, &out.path().join("b"), PackageFacts::default());
        assert_eq!(
            (manifest.encoder.model.as_str(), manifest.encoder.adapter.as_deref()),
            ("mini", Some("encoder-adapter"))
        );
        assert!(!manifest.files.keys().any(|file| file.starts_with("encoder/")), "{:?}", manifest.files);
        // Beside the first layers of a model, which nothing but the run has, it would be of no use.
        write(run.path(), "recipe.toml", &RECIPE_TEXT.replace("\"mini\"", "\"mini\"\nlayers = 2"));
        let manifest = bundle_of(&run, &out.path().join("c"), PackageFacts::default());
        assert_eq!((manifest.encoder.model.as_str(), manifest.encoder.adapter), ("encoder", None));
    }

    #[test]
    fn after_a_warm_up_the_merged_model_comes_along() {
        let run = run(&format!("{RECIPE_TEXT}[warm_up]\nenabled = true\n"));
        let out = tempfile::tempdir().unwrap();
        let manifest = bundle_of(&run, &out.path().join("b"), PackageFacts::default());
        let expander = manifest.expander.unwrap();
        assert_eq!((expander.model.as_str(), expander.adapter), ("expander", None));
        assert!(manifest.files.contains_key("expander/config.json"));
    }

    #[test]
    fn a_weight_that_the_recipe_names_is_served() {
        let run = run(&RECIPE_TEXT.replace("\"dev\"", "0.8"));
        let out = tempfile::tempdir().unwrap();
        let manifest = bundle_of(&run, &out.path().join("b"), PackageFacts::default());
        assert_eq!(manifest.defaults.query_weight, Some(0.8), "and not the one of a weight.json from before");
    }

    #[test]
    fn a_folder_that_is_no_run_is_refused_and_nothing_is_left() {
        let (run, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let error = package(run.path(), &out.path().join("b"), PackageFacts::default()).unwrap_err();
        assert!(error.to_string().contains("not the folder of a training run"), "{error:#}");
        write(run.path(), "recipe.toml", RECIPE_TEXT);
        let error = package(run.path(), &out.path().join("b"), PackageFacts::default()).unwrap_err();
        assert!(
            format!("{error:#}").contains("not finished") && format!("{error:#}").contains("pairs"),
            "{error:#}"
        );
        assert_eq!(fs_err::read_dir(out.path()).unwrap().count(), 0);
    }

    #[test]
    fn files_of_stages_that_the_recipe_does_not_have_are_left_out() {
        let run = run(RECIPE_TEXT);
        write(run.path(), GATE_FILE, "{}");
        let recipe = Recipe::load(&run.path().join(RECIPE), &[]).unwrap();
        let finished = Finished { run: run.path(), recipe: &recipe, stages: [Stage::Dpo].into() };
        let out = tempfile::tempdir().unwrap();
        let manifest = assemble(&finished, &out.path().join("b"), PackageFacts::default()).unwrap();
        assert_eq!((manifest.encoder.model.as_str(), manifest.encoder.adapter), ("mini", None));
        assert_eq!((manifest.gate, manifest.evaluation), (None, None));
        assert!(!manifest.files.contains_key("report.md"), "{:?}", manifest.files);
    }
}
