//! What a system is called where nobody gave it a name: what tells its searches from others'.

use serde_json::Value;

use super::RunFolder;

/// Members of a search or an expansion that don't make another system.
const SILENT: [&str; 9] =
    ["mode", "timeout_ms", "on_failure", "top_k", "explain", "expansion", "ranking", "query", "seed"];

/// The `name` that somebody wrote into the run's settings or metrics.json; none without one.
pub(super) fn recorded_name(folder: &RunFolder) -> Option<&str> {
    let name = folder.settings["name"].as_str().or(folder.metrics["name"].as_str());
    name.filter(|name| !name.trim().is_empty())
}

/// A name from the settings: ranking, then whether and how the query is expanded, then whatever else was asked for.
/// For example `dense raw`, `lexical raw`, `dense expanded w=0.5 64 tokens`, `dense raw search_mode=exact`.
pub(super) fn derived_name(folder: &RunFolder) -> String {
    let search = &folder.settings["search"];
    let mut parts = vec![folder.ranking().to_owned()];
    if is_raw(folder) {
        parts.push("raw".into());
    } else {
        parts.push("expanded".into());
        parts.extend(expansion_parts(folder));
    }
    for (name, value) in search.as_object().into_iter().flatten() {
        let usual = name == "search_mode" && value == "auto";
        if !usual && !SILENT.contains(&name.as_str()) {
            parts.push(format!("{name}={}", plain(value)));
        }
    }
    parts.join(" ")
}

/// Whether the searches are with the query alone: because they say so, or, where that was left to the server, because no
/// query was expanded.
pub(super) fn is_raw(folder: &RunFolder) -> bool {
    match &folder.settings["search"]["expansion"] {
        Value::Bool(wanted) => !wanted,
        Value::Object(expansion) => expansion.get("mode").is_some_and(|mode| mode == "off"),
        _ => !folder.expansions.values().any(|expansion| expansion.status != "disabled"),
    }
}

fn expansion_parts(folder: &RunFolder) -> Vec<String> {
    let expansion = &folder.settings["search"]["expansion"];
    let mut parts = Vec::new();
    if let Some(mode) = expansion.as_str().or(expansion["mode"].as_str()).filter(|mode| *mode != "always") {
        parts.push(mode.to_owned());
    }
    let used = folder.expansions.values().filter(|expansion| !expansion.texts.is_empty());
    let observed = used.filter_map(|expansion| expansion.query_weight).next();
    if let Some(weight) = expansion["query_weight"].as_f64().or(observed) {
        parts.push(format!("w={weight}"));
    }
    let default = &folder.metrics["server"]["defaults"]["expansion_max_tokens"];
    if let Some(tokens) = expansion["max_tokens"].as_u64().or(default.as_u64()) {
        parts.push(format!("{tokens} tokens"));
    }
    for (name, value) in expansion.as_object().into_iter().flatten() {
        let said = SILENT.contains(&name.as_str()) || matches!(name.as_str(), "query_weight" | "max_tokens");
        let usual = (name == "count" && value == 1)
            || (name == "temperature" && value.as_f64() == Some(0.0))
            || name == "texts";
        if !said && !usual {
            parts.push(format!("{name}={}", plain(value)));
        }
    }
    parts
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
