//! Which run belongs where: collections down, systems across.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::RunFolder;
use super::name::{derived_name, recorded_name};
use crate::{Error, Result};

/// A run folder to compare, and what its system is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunArgument {
    /// The system's name; none takes the one that the run recorded, or one from its settings.
    pub name: Option<String>,
    /// The run folder.
    pub path: PathBuf,
}

impl std::str::FromStr for RunArgument {
    type Err = std::convert::Infallible;

    /// `NAME=PATH`, or `PATH`. A folder whose own name holds a `=` is taken as a path.
    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let whole = Self { name: None, path: PathBuf::from(text) };
        if whole.path.is_dir() {
            return Ok(whole);
        }
        Ok(match text.split_once('=') {
            Some((name, path)) if !name.trim().is_empty() => {
                Self { name: Some(name.trim().to_owned()), path: PathBuf::from(path) }
            }
            _ => whole,
        })
    }
}

/// Runs by collection and system.
#[derive(Debug)]
pub(super) struct Grid {
    /// In the order of the arguments.
    pub(super) systems: Vec<String>,
    /// In the order of the arguments.
    pub(super) rows: Vec<Row>,
    /// What a reader must know before the figures.
    pub(super) warnings: Vec<String>,
}

/// One line of a table: a collection, or a group of them (CQADupStack's forums), which counts as the mean of its members.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) members: Vec<Member>,
}

/// One collection.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) collection: String,
    pub(super) split: String,
    /// Beside each system its run; none where it has none.
    pub(super) runs: Vec<Option<RunFolder>>,
    /// The queries that every run scored. All figures are over these.
    pub(super) queries: Vec<String>,
    /// Queries that some runs scored and others did not: they are left out for every system. By system, what it lacks.
    pub(super) left_out: BTreeMap<String, Vec<String>>,
}

impl Member {
    pub(super) fn run(&self, system: usize) -> Option<&RunFolder> {
        self.runs[system].as_ref()
    }

    fn label(&self) -> String {
        format!("{} ({})", self.collection, self.split)
    }
}

impl Grid {
    /// Reads the folders and sorts them into place.
    pub(super) fn read(arguments: &[RunArgument]) -> Result<Self> {
        if arguments.is_empty() {
            return Err(Error::Input("no run folder to compare; give at least one".into()));
        }
        let mut folders = Vec::new();
        for argument in arguments {
            let folder = RunFolder::read(&argument.path)?;
            let name = argument.name.clone().or_else(|| recorded_name(&folder).map(str::to_owned));
            folders.push((name, folder));
        }
        let names = names(&folders);
        let mut grid = Self { systems: Vec::new(), rows: Vec::new(), warnings: Vec::new() };
        for name in &names {
            if !grid.systems.contains(name) {
                grid.systems.push(name.clone());
            }
        }
        for (name, (_, folder)) in names.iter().zip(folders) {
            grid.place(name, folder)?;
        }
        grid.name_rows();
        for row in &mut grid.rows {
            for member in &mut row.members {
                align(member, &grid.systems, &mut grid.warnings)?;
            }
        }
        Ok(grid)
    }

    fn place(&mut self, name: &str, folder: RunFolder) -> Result<()> {
        let system = self.systems.iter().position(|system| system == name).unwrap_or(0);
        let group = folder.collection.split_once('/').map_or(folder.collection.as_str(), |(group, _)| group);
        let row = match self
            .rows
            .iter()
            .position(|row| row.name == group && row.members[0].split == folder.split)
        {
            Some(row) => row,
            None => {
                self.rows.push(Row { name: group.to_owned(), members: Vec::new() });
                self.rows.len() - 1
            }
        };
        let members = &mut self.rows[row].members;
        let member = match members.iter().position(|member| member.collection == folder.collection) {
            Some(member) => member,
            None => {
                members.push(Member {
                    collection: folder.collection.clone(),
                    split: folder.split.clone(),
                    runs: vec![None; self.systems.len()],
                    queries: Vec::new(),
                    left_out: BTreeMap::new(),
                });
                members.len() - 1
            }
        };
        if let Some(earlier) = &members[member].runs[system] {
            return Err(Error::Input(format!(
                "{} and {} are both {name:?} on {}; tell them apart with NAME=PATH",
                earlier.path.display(),
                folder.path.display(),
                members[member].label()
            )));
        }
        members[member].runs[system] = Some(folder);
        Ok(())
    }

    /// Where one collection comes with several splits, its rows say which.
    fn name_rows(&mut self) {
        let names: Vec<String> = self.rows.iter().map(|row| row.name.clone()).collect();
        for row in &mut self.rows {
            if names.iter().filter(|name| **name == row.name).count() > 1 {
                row.name = format!("{} ({})", row.name, row.members[0].split);
            }
        }
    }
}

/// A name a folder. Where the settings alone would give two runs on one collection the same name, the bundle is added.
fn names(folders: &[(Option<String>, RunFolder)]) -> Vec<String> {
    let mut names: Vec<String> =
        folders.iter().map(|(name, folder)| name.clone().unwrap_or_else(|| derived_name(folder))).collect();
    let mut bundles: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, (given, folder)) in names.iter().zip(folders) {
        if given.is_none() {
            bundles.entry(name.as_str()).or_default().insert(folder.bundle());
        }
    }
    let ambiguous: BTreeSet<String> = bundles
        .into_iter()
        .filter(|(_, bundles)| bundles.len() > 1)
        .map(|(name, _)| name.to_owned())
        .collect();
    for (name, (given, folder)) in names.iter_mut().zip(folders) {
        if given.is_none() && ambiguous.contains(name) {
            *name = format!("{name} {}", folder.bundle());
        }
    }
    names
}

/// Finds the queries that all runs of a collection scored, and what a reader must know about the others.
fn align(member: &mut Member, systems: &[String], warnings: &mut Vec<String>) -> Result<()> {
    let label = member.label();
    let runs: Vec<(&str, &RunFolder)> = systems
        .iter()
        .zip(&member.runs)
        .filter_map(|(system, run)| Some((system.as_str(), run.as_ref()?)))
        .collect();
    check_same_frame(&label, &runs, warnings)?;
    let mut union: BTreeSet<&str> = BTreeSet::new();
    for (_, run) in &runs {
        union.extend(run.scores.per_query.keys().map(String::as_str));
    }
    let mut common = union.clone();
    let mut left_out = BTreeMap::new();
    for (system, run) in &runs {
        common.retain(|query| run.scores.per_query.contains_key(*query));
        let lacking: Vec<String> = union
            .iter()
            .filter(|query| !run.scores.per_query.contains_key(**query))
            .map(|query| (*query).to_owned())
            .collect();
        if !lacking.is_empty() {
            warnings.push(format!(
                "{label}: {system:?} did not score {} of {} queries ({}); they are left out for every system",
                lacking.len(),
                union.len(),
                some(&lacking)
            ));
            left_out.insert((*system).to_owned(), lacking);
        }
        if !run.scores.missing.is_empty() {
            let treated =
                if run.metrics["missing_count_as_zero"] == false { "don't count" } else { "count as 0" };
            warnings.push(format!(
                "{label}: {system:?} has no answer to {} judged queries ({}); they {treated}",
                run.scores.missing.len(),
                some(&run.scores.missing)
            ));
        }
    }
    if common.is_empty() {
        return Err(Error::Input(format!(
            "{label}: the runs have no query in common; compare runs over the same queries"
        )));
    }
    member.queries = common.into_iter().map(str::to_owned).collect();
    member.left_out = left_out;
    Ok(())
}

/// What must be the same for figures of one collection to stand in one row.
fn check_same_frame(label: &str, runs: &[(&str, &RunFolder)], warnings: &mut Vec<String>) -> Result<()> {
    let Some((first_name, first)) = runs.first() else { return Ok(()) };
    for (name, run) in &runs[1..] {
        for (query, expansion) in &run.expansions {
            let other = first.expansions.get(query).filter(|other| other.query != expansion.query);
            if let Some(other) = other {
                return Err(Error::Input(format!(
                    "{label}: query {query:?} is {:?} for {first_name:?} and {:?} for {name:?}; \
                     these are runs over different queries",
                    other.query, expansion.query
                )));
            }
        }
        let level = |run: &RunFolder| run.metrics["relevance_level"].clone();
        if level(run) != level(first) {
            return Err(Error::Input(format!(
                "{label}: {first_name:?} counts grades from {} as relevant, {name:?} from {}; score both alike",
                level(first),
                level(run)
            )));
        }
        if let (Some(documents), Some(first_documents)) = (run.documents(), first.documents())
            && documents != first_documents
        {
            warnings.push(format!(
                "{label}: {first_name:?} searched {first_documents} documents, {name:?} {documents}: not the same corpus"
            ));
        }
        let depth = |run: &RunFolder| run.settings["top_k"].as_u64();
        if depth(run) != depth(first) {
            warnings
                .push(format!("{label}: {first_name:?} and {name:?} have lists of different depth (top_k)"));
        }
    }
    Ok(())
}

/// A few of many names.
pub(super) fn some(names: &[String]) -> String {
    let mut text = names.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 10 {
        text.push_str(", …");
    }
    text
}
