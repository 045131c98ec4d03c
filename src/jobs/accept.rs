//! Before a job is accepted: everything that can be found out now is not found out in an hour.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use expandr_evaluation::Collection;
use expandr_models::{bundle, trainable::ADAPTER_FILES, weights};

use super::{
    evaluation::PlannedCollection,
    queue::{Jobs, disk},
    recipe,
    record::Memory,
    request::{Evaluate, EvaluateOn, Import, Imported, JobRequest, Promotion, Retrain, wrong},
};
use crate::http::problem::{FieldError, Problem};

/// Checks a request, and puts what must not change any more (recipe, pairs) into the job's folder.
///
/// # Errors
/// `invalid_request` with a pointer to everything that can't work.
pub(super) async fn accept(
    jobs: &Arc<Jobs>,
    request: &JobRequest,
    id: &str,
    folder: &Path,
) -> Result<Memory, Problem> {
    let (made, request) = (folder.to_owned(), request.clone());
    let feedback = match &request {
        JobRequest::Retrain(retrain) if retrain.pairs.feedback => {
            tokio::fs::create_dir_all(folder.join("data")).await.map_err(|error| disk(&error))?;
            let path = folder.join("data").join(recipe::FEEDBACK_FILE);
            let pairs =
                jobs.host.write_feedback(&path).await.map_err(|problem| at(problem, "/pairs/feedback"))?;
            Some(pairs)
        }
        _ => None,
    };
    let (jobs, id) = (jobs.clone(), id.to_owned());
    let checked = tokio::task::spawn_blocking(move || {
        fs_err::create_dir_all(&made).map_err(|error| disk(&error))?;
        match &request {
            JobRequest::Retrain(retrain) => accept_retrain(&jobs, retrain, feedback, &id, &made),
            JobRequest::Evaluate(evaluate) => accept_evaluate(&jobs, evaluate),
            JobRequest::Import(import) => accept_import(&jobs, import),
            JobRequest::Reindex(_) | JobRequest::Snapshot(_) => Ok(Memory::default()),
        }
    });
    checked.await.map_err(|error| disk(&error))?
}

/// A problem of the service as one of the request's member, where it is about what was asked for.
fn at(problem: Problem, pointer: &str) -> Problem {
    use crate::http::problem::Code;
    match problem.code {
        Code::Internal | Code::Overloaded | Code::Unavailable => problem,
        _ => Problem::field(pointer, problem.detail),
    }
}

fn accept_retrain(
    jobs: &Jobs,
    retrain: &Retrain,
    feedback: Option<usize>,
    id: &str,
    folder: &Path,
) -> Result<Memory, Problem> {
    let composed = recipe::compose(jobs, retrain, feedback, id, folder).map_err(Problem::fields)?;
    let mut errors = Vec::new();
    let on = retrain.evaluate.clone().unwrap_or_default();
    let mut collections = if on.collections.is_empty() {
        composed.collections
    } else {
        find_collections(jobs, &on, "/evaluate", &mut errors)
    };
    if on.collections.is_empty() && on.split.is_some() {
        collections.iter_mut().for_each(|collection| collection.split.clone_from(&on.split));
    }
    check_expansion(jobs, &on, "/evaluate", &mut errors);
    check_rule(&retrain.promotion, &collections, &mut errors);
    if !errors.is_empty() {
        return Err(Problem::fields(errors));
    }
    Ok(Memory { collections, training_stages: composed.stages, ..Memory::default() })
}

/// A rule that needs figures needs collections, and those that it names must be among them.
fn check_rule(rule: &Promotion, collections: &[PlannedCollection], errors: &mut Vec<FieldError>) {
    if rule.when.needs_evaluation() && collections.is_empty() && errors.is_empty() {
        let detail = "this rule compares, and there is nothing to compare on; name collections in /evaluate/collections";
        errors.push(wrong("/promotion/when", detail));
    }
    let Some(deciding) = &rule.collections else { return };
    if deciding.is_empty() {
        errors.push(wrong("/promotion/collections", "is empty; leave it out for all that are evaluated"));
    }
    let names: Vec<&str> = collections.iter().map(|collection| collection.name.as_str()).collect();
    for (i, name) in deciding.iter().enumerate() {
        if !names.contains(&name.as_str()) {
            let detail = format!("`{name}` is not evaluated{}", recipe::nearest(name, names.iter().copied()));
            errors.push(wrong(format!("/promotion/collections/{i}"), detail));
        }
    }
}

fn accept_evaluate(jobs: &Jobs, evaluate: &Evaluate) -> Result<Memory, Problem> {
    let mut errors = Vec::new();
    let collections = find_collections(jobs, &evaluate.on(), "", &mut errors);
    check_expansion(jobs, &evaluate.on(), "", &mut errors);
    for (pointer, id) in [("/bundle", &evaluate.bundle), ("/against", &evaluate.against)] {
        if let Some(id) = id
            && jobs.host.bundle_folder(id).is_none()
        {
            errors.push(wrong(pointer, format!("there is no bundle `{id}`; GET /admin/bundles lists them")));
        }
    }
    let live = jobs.host.active_bundle();
    let candidate = evaluate.bundle.clone().unwrap_or_else(|| live.clone());
    if evaluate.against.as_ref() == Some(&candidate) {
        errors.push(wrong(
            "/against",
            format!("`{candidate}` would be compared with itself; name another bundle"),
        ));
    }
    if !errors.is_empty() {
        return Err(Problem::fields(errors));
    }
    let against = evaluate.against.clone().unwrap_or(live);
    let against = Some(against).filter(|against| *against != candidate);
    Ok(Memory { candidate: Some(candidate), against, collections, ..Memory::default() })
}

fn check_expansion(jobs: &Jobs, on: &EvaluateOn, prefix: &str, errors: &mut Vec<FieldError>) {
    if let Some(expansion) = &on.expansion
        && let Err(problem) = jobs.host.check_expansion(expansion)
    {
        errors.extend(problem.under(prefix).errors);
    }
}

/// Opens every collection once: judgments and queries are whole, and belong together.
fn find_collections(
    jobs: &Jobs,
    on: &EvaluateOn,
    prefix: &str,
    errors: &mut Vec<FieldError>,
) -> Vec<PlannedCollection> {
    let mut found = Vec::new();
    for (i, name) in on.collections.iter().enumerate() {
        let opened = inside(&jobs.settings.data_dir, name).and_then(|path| {
            Collection::open(&path, on.split.as_deref()).map_err(|error| error.to_string())?;
            Ok(path)
        });
        match opened {
            Ok(path) => found.push(PlannedCollection { name: name.clone(), path, split: on.split.clone() }),
            Err(detail) => errors.push(wrong(format!("{prefix}/collections/{i}"), detail)),
        }
    }
    found
}

/// What `name` means in a folder: a path that can't leave it, not even by a link.
pub(super) fn inside(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let plain = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if name.is_empty() || !plain {
        return Err(format!("`{name}` is not a plain path in {}", folder.display()));
    }
    let missing = || format!("there is no `{name}` in {}{}", folder.display(), beside(folder, name));
    let path = fs_err::canonicalize(folder.join(name)).map_err(|_| missing())?;
    let root = fs_err::canonicalize(folder).map_err(|_| missing())?;
    if !path.starts_with(&root) {
        return Err(format!("`{name}` leads out of {}", folder.display()));
    }
    Ok(path)
}

/// The most similar name beside what was looked for.
fn beside(folder: &Path, name: &str) -> String {
    let Ok(entries) = std::fs::read_dir(folder) else { return String::new() };
    let names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    recipe::nearest(name, names.iter().map(String::as_str))
}

fn accept_import(jobs: &Jobs, import: &Import) -> Result<Memory, Problem> {
    let wrong_path = |detail: String| Problem::field("/path", detail);
    let path = import_path(jobs, &import.path).map_err(wrong_path)?;
    let role = match import.what {
        Imported::Bundle => {
            bundle::read(&path).map_err(|error| wrong_path(error.to_string()))?;
            return Ok(Memory::default());
        }
        Imported::Encoder => weights::Role::Encoder,
        Imported::Expander => weights::Role::Expander,
        Imported::EncoderAdapter | Imported::ExpanderAdapter => {
            for file in ADAPTER_FILES {
                if !path.join(file).is_file() {
                    let detail = format!(
                        "{}: {file} is missing; an adapter is a folder in PEFT's layout",
                        path.display()
                    );
                    return Err(wrong_path(detail));
                }
            }
            return Ok(Memory::default());
        }
    };
    if !path.is_dir() {
        return Err(wrong_path(format!("{} is not a folder; give the checkpoint's folder", path.display())));
    }
    weights::resolve(&jobs.settings.models_dir, &path.to_string_lossy(), role)
        .map_err(|error| wrong_path(error.to_string()))?;
    Ok(Memory::default())
}

/// Where something lies that is imported: in the data folder or the models folder.
pub(super) fn import_path(jobs: &Jobs, path: &str) -> Result<PathBuf, String> {
    let settings = &jobs.settings;
    if Path::new(path).is_relative() {
        return inside(&settings.data_dir, path);
    }
    let found = fs_err::canonicalize(path).map_err(|error| error.to_string())?;
    let is_in = |root: &Path| fs_err::canonicalize(root).is_ok_and(|root| found.starts_with(root));
    if is_in(&settings.data_dir) || is_in(&settings.models_dir) {
        return Ok(found);
    }
    Err(format!(
        "{path} lies neither in --data-dir ({}) nor in --models-dir ({}); put it there",
        settings.data_dir.display(),
        settings.models_dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs_err::create_dir_all(data.join("scifact")).unwrap();
        fs_err::create_dir_all(folder.path().join("secret")).unwrap();
        assert!(inside(&data, "scifact").unwrap().ends_with("scifact"));
        for name in ["", ".", "..", "../secret", "/etc", "scifact/../../secret"] {
            assert!(inside(&data, name).unwrap_err().contains("not a plain path"), "{name}");
        }
        let missing = inside(&data, "scifct").unwrap_err();
        assert!(missing.contains("did you mean `scifact`?"), "{missing}");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(folder.path().join("secret"), data.join("link")).unwrap();
            assert!(inside(&data, "link").unwrap_err().contains("leads out"));
        }
    }
}
