//! A scenario file: the command line's flags as TOML keys, and a table for each kind of request.
//!
//! The file becomes flags, which are parsed with those of the command line: a flag means the same in both places, and is
//! refused for the same reasons. What the command line says goes before what the file says.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{CommandFactory, Parser};

use crate::args::Args;
use crate::kinds::KindSpec;

/// Flags of which one excludes the others: when the command line has one, the file's are left out.
const GROUPS: [&[&str]; 3] =
    [&["rate", "find-limit", "connections"], &["queries", "query"], &["kind", "cached"]];

/// The command line, with the flags and kinds of its scenario file.
///
/// # Errors
///
/// When the file can't be read or has a key that is no flag.
pub(crate) fn arguments(words: Vec<OsString>) -> Result<Args> {
    let Some(path) = scenario_path(&words) else {
        return Ok(Args::parse_from(words));
    };
    let path = Path::new(&path);
    let text = fs_err::read_to_string(path)?;
    let place = || path.display().to_string();
    let mut table: toml::Table = text.parse().with_context(place)?;
    let kinds = table.remove("kind");
    let mut all: Vec<OsString> = words.iter().take(1).cloned().collect();
    for (key, value) in table {
        let flag = key.replace('_', "-");
        ensure!(is_flag(&flag), "{}: {key:?} is no flag of this program; --help lists them", place());
        if !said(&words, &flag) {
            all.extend(flags(&flag, &value).with_context(place)?);
        }
    }
    all.extend(words.iter().skip(1).cloned());
    let mut args = Args::parse_from(all);
    if let (Some(kinds), false) = (kinds, said(&words, "kind")) {
        ensure!(args.cached.is_none(), "{}: --cached and [[kind]] exclude each other", place());
        args.kinds = read_kinds(kinds).with_context(place)?;
    }
    Ok(args)
}

fn read_kinds(value: toml::Value) -> Result<Vec<KindSpec>> {
    let toml::Value::Array(tables) = value else { bail!("write each kind as a table [[kind]]") };
    let read = |value| match value {
        toml::Value::Table(table) => KindSpec::from_table(table).map_err(|error| anyhow!(error)),
        _ => bail!("write each kind as a table [[kind]]"),
    };
    tables.into_iter().map(read).collect()
}

fn scenario_path(words: &[OsString]) -> Option<String> {
    let mut words = words.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if word == "--scenario" {
            return words.next().map(|path| path.into_owned());
        }
        if let Some(path) = word.strip_prefix("--scenario=") {
            return Some(path.to_owned());
        }
    }
    None
}

fn is_flag(name: &str) -> bool {
    let flag = |argument: &clap::Arg| argument.get_long() == Some(name);
    name != "scenario" && Args::command().get_arguments().any(flag)
}

/// Whether the command line has this flag, or one that excludes it.
fn said(words: &[OsString], flag: &str) -> bool {
    let group = GROUPS.into_iter().find(|group| group.contains(&flag));
    let names = group.unwrap_or(std::slice::from_ref(&flag));
    words.iter().map(|word| word.to_string_lossy()).any(|word| {
        let name = word.split_once('=').map_or(&*word, |(name, _)| name);
        name.strip_prefix("--").is_some_and(|name| names.contains(&name))
    })
}

/// A value as flags: a list repeats the flag, `true` is the flag alone, `false` none.
fn flags(flag: &str, value: &toml::Value) -> Result<Vec<OsString>> {
    let text = match value {
        toml::Value::Array(values) => {
            let mut all = Vec::new();
            for value in values {
                all.extend(flags(flag, value)?);
            }
            return Ok(all);
        }
        toml::Value::Boolean(true) => return Ok(vec![format!("--{flag}").into()]),
        toml::Value::Boolean(false) => return Ok(Vec::new()),
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        other => bail!("{flag}: a {} can't be a flag's value", other.type_str()),
    };
    Ok(vec![format!("--{flag}={text}").into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
queries = "queries.jsonl"
rate = [2, 4.5]
duration = "3s"
objective = ["p99<350ms", "errors<1%"]
max_in_flight = 7
degraded-is-good = true

[[kind]]
name = "cached"
share = 0.7
queries = "hot"
expansion = "always"
timeout_ms = 300

[[kind]]
name = "batch"
share = 0.3
batch = 8
"#;

    fn with(content: &str, flags: &[&str]) -> Result<Args> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), content).unwrap();
        let mut words = vec!["expandr-loadtest", "--scenario", file.path().to_str().unwrap()];
        words.extend(flags);
        arguments(words.into_iter().map(OsString::from).collect())
    }

    #[test]
    fn a_files_keys_are_flags() {
        let args = with(FILE, &[]).unwrap();
        assert_eq!(args.rate, [2.0, 4.5]);
        assert_eq!((args.max_in_flight, args.duration.0.as_secs()), (7, 3));
        assert_eq!((args.objectives.len(), args.kinds.len()), (2, 2));
        assert!(args.degraded_is_good);
        let kinds = crate::kinds::kinds(&args).unwrap();
        assert_eq!((kinds[0].name.as_str(), kinds[1].batch), ("cached", 8));
        assert!((kinds[0].share - 0.7).abs() < 1e-9);
    }

    #[test]
    fn the_command_line_goes_first() {
        let args =
            with(FILE, &["--duration=9s", "--connections", "3", "--query", "q", "--cached", "0.5"]).unwrap();
        assert_eq!((args.duration.0.as_secs(), args.connections.as_slice()), (9, &[3][..]));
        assert!(args.rate.is_empty() && args.queries.is_none() && args.kinds.is_empty());
        assert_eq!(args.max_in_flight, 7);
    }

    #[test]
    fn the_example_is_a_scenario() {
        let args = with(include_str!("../scenarios/mix.toml"), &["--queries", "queries.jsonl"]).unwrap();
        args.check().unwrap();
        let kinds = crate::kinds::kinds(&args).unwrap();
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name.as_str()).collect();
        assert_eq!(names, ["cached", "fresh", "batch"]);
        crate::session::check_kinds(&args, &names).unwrap();
    }

    #[test]
    fn wrong_files_are_named() {
        for (content, wrong) in [
            ("speed = 3\nrate = 1\nquery = \"q\"", "\"speed\" is no flag"),
            ("rate = ", "TOML"),
            ("rate = 1\nquery = \"q\"\nkind = 3", "[[kind]]"),
            ("rate = 1\nquery = \"q\"\n[[kind]]\nname = \"a\"\nspeed = 1", "speed"),
            ("rate = 1\nquery = \"q\"\ncached = 0.5\n[[kind]]\nname = \"a\"", "exclude each other"),
            ("rate = 1\nquery = 1979-05-27", "can't be a flag's value"),
        ] {
            let error = format!("{:#}", with(content, &[]).unwrap_err());
            assert!(error.contains(wrong), "{content:?}: {error}");
        }
        let missing = ["expandr-loadtest", "--scenario=/nowhere.toml"].map(OsString::from).to_vec();
        assert!(format!("{:#}", arguments(missing).unwrap_err()).contains("/nowhere.toml"));
    }
}
