//! A retraining's recipe as it runs: the recipe that was named or sent, the overrides, and the pairs as they are now.

use std::path::{Path, PathBuf};

use expandr_evaluation::Collection;
use expandr_models::{DeviceChoice, weights};
use expandr_training::{
    Recipe, Stage,
    plan::{ARMS, Arm, Graph},
    readers::SourceSettings,
    recipe::CollectionSettings,
};
use serde_json::Value;

use super::{
    accept::inside,
    evaluation::PlannedCollection,
    queue::Jobs,
    request::{Retrain, wrong},
};
use crate::http::problem::FieldError;

/// The pairs from feedback in the job's data folder.
pub(super) const FEEDBACK_FILE: &str = "feedback.jsonl";

/// What a recipe comes to.
#[derive(Debug)]
pub(super) struct Composed {
    /// Its own evaluation collections.
    pub(super) collections: Vec<PlannedCollection>,
    /// How many stages it has.
    pub(super) stages: u64,
}

type Errors = Vec<FieldError>;

/// Checks everything, and writes `recipe.toml` and `data/` into the job's folder.
pub(super) fn compose(
    jobs: &Jobs,
    retrain: &Retrain,
    feedback: Option<usize>,
    id: &str,
    folder: &Path,
) -> Result<Composed, Errors> {
    let place = if retrain.recipe_toml.is_some() { "/recipe_toml" } else { "/recipe" };
    let one = |pointer: &str, detail: String| vec![wrong(pointer, detail)];
    let text = text(jobs, retrain)?;
    let sources = pair_sources(jobs, retrain, feedback, folder)?;
    let mut recipe = parse(&text, retrain, &sources, place)?;
    recipe.output = folder.join("run");
    let overridden = |setting: &str| retrain.overrides.keys().find(|key| key.starts_with(setting));
    let pointer_of = |setting: &str| {
        let is_data = setting.starts_with("data.") || setting == "evaluation.collections";
        let folder = || if is_data { overridden("data.folder") } else { None };
        overridden(setting).or_else(folder).map_or(place.to_owned(), |key| format!("/overrides/{key}"))
    };
    let mut errors = Vec::new();
    place_data(jobs, &mut recipe, id, &pointer_of).map_err(|error| vec![error])?;
    check_data(jobs, &recipe, folder, &pointer_of, &mut errors);
    check_models(jobs, &recipe, &pointer_of, &mut errors);
    let stages = check_stages(&recipe, retrain, place, &mut errors);
    let collections = own_collections(&recipe, &pointer_of, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let toml = recipe.to_toml().map_err(|error| one(place, error.to_string()))?;
    fs_err::write(folder.join("recipe.toml"), toml).map_err(|error| one(place, error.to_string()))?;
    Ok(Composed { collections, stages })
}

fn text(jobs: &Jobs, retrain: &Retrain) -> Result<String, Errors> {
    if let Some(text) = &retrain.recipe_toml {
        return Ok(text.clone());
    }
    let name = retrain.recipe.as_deref().unwrap_or_default();
    let recipes = &jobs.settings.recipes_dir;
    let read = inside(recipes, &format!("{name}.toml"))
        .map_err(|detail| {
            if name.is_empty() || name.contains(['/', '\\']) {
                return detail;
            }
            let names = recipe_names(recipes);
            format!("there is no recipe `{name}` in {}{}", recipes.display(), listed(name, &names))
        })
        .and_then(|path| fs_err::read_to_string(path).map_err(|error| error.to_string()));
    read.map_err(|detail| vec![wrong("/recipe", detail)])
}

fn recipe_names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> =
        names.filter_map(|name| name.strip_suffix(".toml").map(str::to_owned)).collect();
    names.sort();
    names
}

fn listed(name: &str, names: &[String]) -> String {
    let suggestion = nearest(name, names.iter().map(String::as_str));
    match (suggestion.is_empty(), names.is_empty()) {
        (false, _) => suggestion,
        (true, true) => "; there are none".to_owned(),
        (true, false) => format!("; there are {}", names.join(", ")),
    }
}

/// `; did you mean …?`, or nothing.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let likeness = |other: &str| strsim::jaro_winkler(other, name);
    let best = names.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match best.filter(|best| likeness(best) >= 0.75) {
        Some(best) => format!("; did you mean `{best}`?"),
        None => String::new(),
    }
}

/// The datasets and the feedback as sources, each a file in the job's folder that nobody changes any more.
fn pair_sources(
    jobs: &Jobs,
    retrain: &Retrain,
    feedback: Option<usize>,
    folder: &Path,
) -> Result<Vec<SourceSettings>, Errors> {
    let mut errors = Vec::new();
    let mut sources = Vec::new();
    let data = folder.join("data");
    for (i, name) in retrain.pairs.datasets.iter().enumerate() {
        let pointer = format!("/pairs/datasets/{i}");
        if retrain.pairs.datasets[..i].contains(name) {
            errors.push(wrong(pointer, format!("`{name}` is named twice")));
            continue;
        }
        let names = jobs.host.datasets();
        if !names.contains(name) {
            let suggestion = nearest(name, names.iter().map(String::as_str));
            errors.push(wrong(pointer, format!("there is no dataset `{name}`{suggestion}")));
            continue;
        }
        let frozen = data.join(format!("dataset-{i}.jsonl"));
        let copied = fs_err::create_dir_all(&data).map_err(|error| error.to_string());
        let copied =
            copied.and_then(|()| jobs.host.copy_dataset(name, &frozen).map_err(|problem| problem.detail));
        match copied {
            Ok(()) => sources.push(source(&format!("dataset-{name}"), frozen)),
            Err(detail) => errors.push(wrong(pointer, detail)),
        }
    }
    if let Some(pairs) = feedback {
        if pairs == 0 {
            errors.push(wrong("/pairs/feedback", "there is no feedback yet to train on; leave it out"));
        }
        sources.push(source("feedback", data.join(FEEDBACK_FILE)));
    }
    if retrain.pairs.only && sources.is_empty() && errors.is_empty() {
        errors.push(wrong("/pairs/only", "leaves no pairs at all; name datasets, or take feedback"));
    }
    if errors.is_empty() { Ok(sources) } else { Err(errors) }
}

fn source(name: &str, path: PathBuf) -> SourceSettings {
    let path = std::path::absolute(&path).unwrap_or(path);
    SourceSettings { name: name.to_owned(), path, ..SourceSettings::default() }
}

/// The recipe with everything that is put over it. Errors name the override at fault, where one alone is.
fn parse(text: &str, retrain: &Retrain, sources: &[SourceSettings], place: &str) -> Result<Recipe, Errors> {
    let mut given: Vec<(String, String)> = Vec::new();
    for (key, value) in &retrain.overrides {
        if matches!(key.as_str(), "output" | "data.sources")
            || key.starts_with("data.sources.") && retrain.pairs.only
        {
            let detail = "is the job's own; leave it out (pairs come from /pairs)";
            return Err(vec![wrong(format!("/overrides/{key}"), detail)]);
        }
        given.push((format!("/overrides/{key}"), format!("{key}={}", toml_value(value))));
    }
    let mut base = Vec::new();
    if retrain.pairs.only {
        base.push(format!("data.sources=[{}]", inline(sources)));
    }
    let all: Vec<String> = base.iter().cloned().chain(given.iter().map(|(_, text)| text.clone())).collect();
    let recipe = match Recipe::parse(text, &all) {
        Ok(recipe) => recipe,
        Err(together) => {
            if let Err(detail) = Recipe::parse(text, &base) {
                return Err(vec![wrong(place, detail)]);
            }
            let mut errors = Vec::new();
            for (pointer, override_) in &given {
                let alone: Vec<String> = base.iter().cloned().chain([override_.clone()]).collect();
                if let Err(detail) = Recipe::parse(text, &alone) {
                    errors.push(wrong(pointer, detail));
                }
            }
            return Err(if errors.is_empty() { vec![wrong("/overrides", together)] } else { errors });
        }
    };
    if retrain.pairs.only || sources.is_empty() {
        return Ok(recipe);
    }
    let mut recipe = recipe;
    recipe.data.sources.extend_from_slice(sources);
    let text = recipe.to_toml().map_err(|error| vec![wrong("/pairs", error.to_string())])?;
    Recipe::parse(&text, &[]).map_err(|detail| vec![wrong("/pairs/datasets", detail)])
}

fn inline(sources: &[SourceSettings]) -> String {
    let one = |source: &SourceSettings| {
        let (name, path) =
            (Value::from(source.name.clone()), Value::from(source.path.to_string_lossy().into_owned()));
        format!("{{ name = {name}, path = {path} }}")
    };
    sources.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// JSON as the TOML that an override takes; null takes the setting away.
fn toml_value(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Array(values) => format!("[{}]", values.iter().map(toml_value).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members = members
                .iter()
                .map(|(key, value)| format!("{} = {}", Value::from(key.as_str()), toml_value(value)));
            format!("{{ {} }}", members.collect::<Vec<_>>().join(", "))
        }
        // Numbers, truth values and strings with their escapes are the same in both.
        other => other.to_string(),
    }
}

/// Says where `data.folder` is: in the data folder, else where it would be for `expandr train`.
fn place_data(
    jobs: &Jobs,
    recipe: &mut Recipe,
    id: &str,
    pointer_of: &dyn Fn(&str) -> String,
) -> Result<(), FieldError> {
    let settings = &jobs.settings;
    let given = recipe.data.folder.clone();
    let candidates = [settings.data_dir.join(&given), given.clone()];
    let found = candidates.iter().find_map(|path| fs_err::canonicalize(path).ok());
    let needed = recipe.data.sources.iter().any(|source| source.path.is_relative());
    match found {
        Some(found) => recipe.data.folder = found,
        None if needed => {
            let detail = format!(
                "`data.folder` is {}, which is neither in --data-dir ({}) nor here; override data.folder with \".\" for \
                 --data-dir itself",
                given.display(),
                settings.data_dir.display()
            );
            return Err(wrong(pointer_of("data.folder"), detail));
        }
        None => recipe.data.folder = std::path::absolute(settings.folder.join(id)).unwrap_or(given),
    }
    Ok(())
}

/// Everything that is read is there, and lies where jobs may read.
fn check_data(
    jobs: &Jobs,
    recipe: &Recipe,
    folder: &Path,
    pointer_of: &dyn Fn(&str) -> String,
    errors: &mut Errors,
) {
    let mut paths: Vec<(&str, PathBuf)> = Vec::new();
    for source in &recipe.data.sources {
        paths.extend(source.paths().into_iter().map(|path| ("data.sources", recipe.data_path(path))));
    }
    let collections = |of: &[CollectionSettings]| -> Vec<PathBuf> {
        of.iter().map(|collection| recipe.data_path(&collection.path)).collect()
    };
    paths.extend(collections(&recipe.data.held_out).into_iter().map(|path| ("data.held_out", path)));
    paths.extend(
        collections(&recipe.evaluation.collections).into_iter().map(|path| ("evaluation.collections", path)),
    );
    let settings = &jobs.settings;
    let roots: Vec<PathBuf> = [settings.data_dir.as_path(), settings.recipes_dir.as_path(), folder]
        .iter()
        .filter_map(|root| fs_err::canonicalize(root).ok())
        .collect();
    for (setting, path) in paths {
        match fs_err::canonicalize(&path) {
            Err(error) => errors.push(wrong(pointer_of(setting), format!("`{setting}`: {error}"))),
            Ok(found) if roots.iter().any(|root| found.starts_with(root)) => {}
            Ok(found) => {
                let detail = format!(
                    "`{setting}`: {} lies outside of --data-dir and --recipes-dir, where jobs may read",
                    found.display()
                );
                errors.push(wrong(pointer_of(setting), detail));
            }
        }
    }
}

/// Models that are named are there. Hub ids are looked for when they are needed.
fn check_models(jobs: &Jobs, recipe: &Recipe, pointer_of: &dyn Fn(&str) -> String, errors: &mut Errors) {
    use weights::Role::{Encoder, Expander};
    let named = [
        ("expander.model", Some(&recipe.expander.model), Expander),
        ("encoder.model", Some(&recipe.encoder.model), Encoder),
        ("candidates.model", recipe.candidates.model.as_ref(), Expander),
        ("answers.model", recipe.answers.model.as_ref(), Expander),
        ("rewards.encoder", recipe.rewards.encoder.as_ref(), Encoder),
    ];
    for (setting, model, role) in named {
        let Some(model) = model else { continue };
        let is_hub_id = model.contains('/') && !Path::new(model).exists();
        if is_hub_id {
            continue;
        }
        if let Err(error) = weights::resolve(&jobs.settings.models_dir, model, role) {
            errors.push(wrong(pointer_of(setting), format!("`{setting}`: {error}")));
        }
    }
    let own = jobs.settings.serve.pointer("/models/expander").and_then(Value::as_str);
    let has_key = jobs.settings.child.api_key.is_some();
    if let Some(endpoint) =
        recipe.machine.endpoint.as_deref().filter(|endpoint| has_key && Some(*endpoint) != own)
    {
        let detail = format!(
            "`machine.endpoint`: {endpoint} is not the language model's server that this server was started with, and its key \
             (--expander-api-key) is not sent elsewhere; take that server, or train from the command line"
        );
        errors.push(wrong(pointer_of("machine.endpoint"), detail));
    }
    if let Err(error) = recipe.machine.device.parse::<DeviceChoice>() {
        errors.push(wrong(pointer_of("machine.device"), format!("`machine.device`: {error}")));
    }
}

/// The stages are there, and part of this run. Gives how many will be done.
fn check_stages(recipe: &Recipe, retrain: &Retrain, place: &str, errors: &mut Errors) -> u64 {
    let mut arms: Vec<&'static Arm> = Vec::new();
    if retrain.ablations {
        arms.extend(ARMS);
    } else {
        arms.extend(recipe.evaluation.arms.iter().filter_map(|name| Arm::named(name).ok()));
    }
    let graph = match Graph::plan(recipe, &arms) {
        Ok(graph) => graph,
        Err(error) => {
            errors.push(wrong(place, error.to_string()));
            return 0;
        }
    };
    let planned: Vec<Stage> = graph.needed().map(|(_, node)| node.stage()).collect();
    let Some(stages) = &retrain.stages else { return planned.len() as u64 };
    if stages.is_empty() {
        errors.push(wrong("/stages", "is empty; leave it out for all stages"));
    }
    let mut wanted = Vec::new();
    for (i, name) in stages.iter().enumerate() {
        match Stage::named(name) {
            Ok(stage) if planned.contains(&stage) => wanted.push(stage),
            Ok(_) => errors
                .push(wrong(format!("/stages/{i}"), format!("stage {name} is no part of this recipe's run"))),
            Err(detail) => errors.push(wrong(format!("/stages/{i}"), detail)),
        }
    }
    // What the stages need must be among them: a new job has an empty run folder.
    for (_, node) in graph.needed().filter(|(_, node)| wanted.contains(&node.stage())) {
        for input in node.work.inputs() {
            let before = graph.nodes[input].stage();
            if !wanted.contains(&before) {
                let detail = format!("stage {} needs stage {}; add it", node.stage().name(), before.name());
                if !errors.iter().any(|error| error.detail == detail) {
                    errors.push(wrong("/stages", detail));
                }
            }
        }
    }
    planned.iter().filter(|stage| wanted.contains(stage)).count() as u64
}

/// The recipe's own collections, opened once.
fn own_collections(
    recipe: &Recipe,
    pointer_of: &dyn Fn(&str) -> String,
    errors: &mut Errors,
) -> Vec<PlannedCollection> {
    let mut found = Vec::new();
    for settings in &recipe.evaluation.collections {
        let path = recipe.data_path(&settings.path);
        if !path.exists() {
            continue; // said already
        }
        match Collection::open(&path, settings.split.as_deref()) {
            Ok(collection) => {
                found.push(PlannedCollection { name: collection.name, path, split: settings.split.clone() });
            }
            Err(error) => errors.push(wrong(pointer_of("evaluation.collections"), error.to_string())),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_becomes_the_toml_of_an_override() {
        let cases = [
            (json!(1), "1"),
            (json!(2e-5), "0.00002"),
            (json!(true), "true"),
            (json!("text"), "\"text\""),
            (json!([0.8, 1.0]), "[0.8, 1.0]"),
            (json!(null), "none"),
        ];
        for (value, expected) in cases {
            let text = toml_value(&value);
            let same =
                text == expected || text.parse::<f64>().is_ok_and(|number| Some(number) == value.as_f64());
            assert!(same, "{value}: {text}");
        }
        let source =
            SourceSettings { name: "a \"b\"".into(), path: "/x y".into(), ..SourceSettings::default() };
        let recipe = Recipe::parse("", &[format!("data.sources=[{}]", inline(&[source]))]).unwrap();
        assert_eq!(
            (recipe.data.sources[0].name.as_str(), recipe.data.sources[0].path.as_path()),
            ("a \"b\"", Path::new("/x y"))
        );
    }

    #[test]
    fn errors_name_the_override_at_fault() {
        let base = "[[data.sources]]\nname = \"n\"\npath = \"p\"";
        let parse_with = |overrides: Value| {
            let Value::Object(overrides) = overrides else { panic!() };
            parse(base, &Retrain { overrides, ..Retrain::default() }, &[], "/recipe")
        };
        let recipe =
            parse_with(json!({"dpo.epochs": 1, "dpo.learning_rate": 1e-5, "encoder.layers": 2})).unwrap();
        assert_eq!((recipe.dpo.epochs, recipe.encoder.layers), (1.0, Some(2)));
        let errors = parse_with(json!({"dpo.epoch": 1, "dpo.epochs": -1, "seed": 3})).unwrap_err();
        let pointers: Vec<&str> = errors.iter().map(|error| error.pointer.as_str()).collect();
        assert_eq!(pointers, ["/overrides/dpo.epoch", "/overrides/dpo.epochs"]);
        assert!(errors[0].detail.contains("did you mean `dpo.epochs`?"), "{errors:?}");
        let errors = parse("seed = \"x\"", &Retrain::default(), &[], "/recipe_toml").unwrap_err();
        assert_eq!(errors[0].pointer, "/recipe_toml");
        assert_eq!(parse_with(json!({"output": "/elsewhere"})).unwrap_err()[0].pointer, "/overrides/output");
    }
}
