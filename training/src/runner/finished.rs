//! Whether what lies in a run folder belongs together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::folder::{Begun, Manifest, difference, manifest_path, work_folder};
use crate::plan::{Arm, Graph, Node, Stage};
use crate::recipe::Recipe;
use crate::{Error, Result};

/// ExpandR's row.
const ROW: &str = "expandr";

/// The stages whose files lie in the folder `run` itself (ExpandR's own) and that are done, with the recipe's settings and
/// each with what those before it left. Those that the recipe's rows need must be, but for the evaluation and what it alone
/// needs. Manifests are compared, no files.
///
/// # Errors
/// When a stage that must be done is not, or was done with other settings or with something else than what is there, and
/// when a manifest can't be read.
pub fn finished_stages(run: &Path, recipe: &Recipe) -> Result<BTreeSet<Stage>> {
    let mut arms: Vec<&'static Arm> = vec![Arm::named(ROW).map_err(Error::Input)?];
    for name in &recipe.evaluation.arms {
        arms.push(Arm::named(name).map_err(Error::Input)?);
    }
    let graph = Graph::plan(recipe, &arms)?;
    let foreign = of_other_recipes(run, &graph)?;
    let mut done: BTreeMap<usize, BTreeMap<String, String>> = BTreeMap::new();
    for (id, node) in graph.needed() {
        match outputs(run, node, &foreign, |input| done.get(&input)) {
            Ok(outputs) => {
                done.insert(id, outputs);
            }
            Err(detail) if !must_be_done(node, recipe) => {
                tracing::debug!(stage = node.name(), detail, "left out");
            }
            Err(detail) => {
                let detail = format!("{detail}; do it with `expandr train {}/recipe.toml`", run.display());
                return Err(Error::Stage { stage: node.name(), detail });
            }
        }
    }
    let own = done.keys().map(|id| &graph.nodes[*id]).filter(|node| is_own(node));
    Ok(own.map(Node::stage).collect())
}

fn is_own(node: &Node) -> bool {
    node.home.as_os_str().is_empty()
}

/// Whether a row of the recipe needs it for more than its evaluation. The gate comes with ExpandR's row.
fn must_be_done(node: &Node, recipe: &Recipe) -> bool {
    let evaluates =
        matches!(node.stage(), Stage::Vectors | Stage::TestExpansions | Stage::Evaluation | Stage::Report);
    let asked_for = |name: &str| recipe.evaluation.arms.iter().any(|arm| arm == name);
    let needed =
        node.arms.iter().any(|arm| asked_for(arm)) || (node.stage() == Stage::Gate && asked_for(ROW));
    is_own(node) && needed && !evaluates
}

/// Hashes of what stages have left in the folder itself that the recipe doesn't have (any more).
fn of_other_recipes(run: &Path, graph: &Graph) -> Result<BTreeSet<String>> {
    let planned: BTreeSet<PathBuf> = graph.nodes.iter().map(|node| manifest_path(run, node)).collect();
    let mut hashes = BTreeSet::new();
    let stages = run.join("stages");
    if stages.is_dir() {
        for entry in fs_err::read_dir(&stages)? {
            let path = entry?.path();
            let is_manifest = path.extension().is_some_and(|extension| extension == "json");
            if is_manifest && !planned.contains(&path) {
                hashes.extend(
                    Manifest::read(&path)?.into_iter().flat_map(|manifest| manifest.outputs.into_values()),
                );
            }
        }
    }
    Ok(hashes)
}

/// What a node left, or why it isn't done.
fn outputs<'a>(
    run: &Path,
    node: &Node,
    foreign: &BTreeSet<String>,
    done: impl Fn(usize) -> Option<&'a BTreeMap<String, String>>,
) -> std::result::Result<BTreeMap<String, String>, String> {
    let manifest = Manifest::read(&manifest_path(run, node)).map_err(|error| error.to_string())?;
    let Some(manifest) = manifest else {
        let begun = Begun::read(&work_folder(run, node)).map_err(|error| error.to_string())?;
        return Err(if begun.is_some() { "it is not finished" } else { "it is not done" }.into());
    };
    // A report may have further rows.
    let settings_count = !manifest.adopted && node.stage() != Stage::Report;
    if settings_count && manifest.settings != node.settings {
        let change = difference(&manifest.settings, &node.settings);
        return Err(format!("it was done with other settings than the run folder's recipe has ({change})"));
    }
    if let Some((label, _)) = manifest.inputs.iter().find(|(_, hash)| foreign.contains(*hash)) {
        return Err(format!(
            "it was done with the {label} of a stage that the run folder's recipe doesn't have"
        ));
    }
    for input in node.work.inputs() {
        let Some(left) = done(input) else { return Err("what it reads is not done".into()) };
        for (label, hash) in left {
            if manifest.inputs.get(label) != Some(hash) {
                return Err(format!("it was done with another {label} than the one that is there"));
            }
        }
    }
    Ok(manifest.outputs)
}
