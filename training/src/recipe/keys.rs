//! Names of settings: overrides from the command line, and unknown ones with a suggestion.

use serde_json::Value as Json;
use toml::Value as Toml;

/// How much a name must be like a known one to be suggested, between 0 and 1.
const LIKENESS: f64 = 0.75;

/// Puts `path=value` over what was given. Lists of tables are entered by position or by their `name`
/// (`data.sources.nq.limit=100`). The value is TOML; what is not is taken as text, and `none` takes the setting away.
pub(super) fn set(given: &mut Toml, text: &str) -> Result<(), String> {
    let Some((path, value)) = text.split_once('=') else {
        return Err(format!("override `{text}` has no `=`; write e.g. dpo.learning_rate=1e-5"));
    };
    let (path, value) = (path.trim(), value.trim());
    let mut parts: Vec<&str> = path.split('.').collect();
    let (Some(last), false) = (parts.pop(), path.split('.').any(|part| part.trim().is_empty())) else {
        return Err(format!("override `{text}` names no setting; write e.g. dpo.learning_rate=1e-5"));
    };
    let mut place = given;
    for part in parts {
        place = enter(place, part).map_err(|detail| format!("override `{text}`: {detail}"))?;
    }
    match place {
        Toml::Table(table) if value == "none" => {
            table.remove(last);
        }
        Toml::Table(table) => {
            table.insert(last.to_owned(), parse(value));
        }
        list @ Toml::Array(_) => {
            *enter(list, last).map_err(|detail| format!("override `{text}`: {detail}"))? = parse(value);
        }
        _ => return Err(format!("override `{text}`: what stands before `{last}` has no parts")),
    }
    Ok(())
}

fn enter<'a>(place: &'a mut Toml, part: &str) -> Result<&'a mut Toml, String> {
    match place {
        Toml::Table(table) => Ok(table.entry(part).or_insert_with(|| Toml::Table(toml::Table::new()))),
        Toml::Array(list) => {
            let count = list.len();
            let named = list.iter().position(|item| item.get("name").and_then(Toml::as_str) == Some(part));
            match part.parse().ok().filter(|position| *position < count).or(named) {
                Some(position) => Ok(&mut list[position]),
                None => {
                    Err(format!("`{part}` is neither a position below {count} nor the name of an element"))
                }
            }
        }
        _ => Err(format!("what stands before `{part}` has no parts")),
    }
}

fn parse(value: &str) -> Toml {
    let parsed: Result<toml::Table, _> = toml::from_str(&format!("value = {value}"));
    let parsed = parsed.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| Toml::String(value.to_owned()))
}

/// Refuses settings that `schema` doesn't have.
pub(super) fn check(given: &Toml, schema: &Json) -> Result<(), String> {
    let mut known = Vec::new();
    names(schema, "", &mut known);
    known.sort();
    check_below(given, schema, "", &known)
}

fn check_below(given: &Toml, schema: &Json, path: &str, known: &[String]) -> Result<(), String> {
    match (given, schema) {
        (Toml::Table(table), Json::Object(settings)) => {
            for (key, value) in table {
                let here = join(path, key);
                match settings.get(key) {
                    Some(schema) => check_below(value, schema, &here, known)?,
                    None => return Err(unknown(&here, settings.keys().map(|key| join(path, key)), known)),
                }
            }
            Ok(())
        }
        (Toml::Array(list), Json::Array(elements)) => match elements.first() {
            Some(element @ Json::Object(_)) => {
                list.iter().try_for_each(|item| check_below(item, element, path, known))
            }
            _ => Ok(()),
        },
        // Values of another type are named when they are read.
        _ => Ok(()),
    }
}

fn unknown(path: &str, siblings: impl Iterator<Item = String>, known: &[String]) -> String {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |name: &String| strsim::jaro_winkler(&last(name), &last(path));
    let sibling = siblings.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let near = sibling.filter(|name| likeness(name) >= LIKENESS);
    let elsewhere = || known.iter().find(|name| last(name) == last(path)).cloned();
    // A name that is right elsewhere is a better guess than one that is like it here, unless the latter is a slip.
    let slip = near.clone().filter(|name| strsim::damerau_levenshtein(&last(name), &last(path)) <= 2);
    match slip.or_else(elsewhere).or(near) {
        Some(suggestion) => format!("unknown setting `{path}`; did you mean `{suggestion}`?"),
        None => {
            format!("unknown setting `{path}`; docs/training.md lists all of them")
        }
    }
}

/// The names of all leaves; those of a list of tables without a number.
pub(super) fn names(schema: &Json, path: &str, found: &mut Vec<String>) {
    match schema {
        Json::Object(settings) => {
            for (key, value) in settings {
                names(value, &join(path, key), found);
            }
        }
        Json::Array(elements) if elements.first().is_some_and(Json::is_object) => {
            names(&elements[0], path, found);
        }
        _ => found.push(path.to_owned()),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
