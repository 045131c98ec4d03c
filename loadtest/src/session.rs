//! The order of a run: which loads, one after the other, and what is made of them.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use crate::args::Args;
use crate::figures::Good;
use crate::limit::{Limit, Search, Settings, Step};
use crate::load::Generator;
use crate::measure::Phase;
use crate::objective::Objective;
use crate::plan::{Plan, Role};
use crate::progress::Progress;
use crate::resources::Sampler;

/// Refusals and failures above this make a rate too high, unless an objective says otherwise: without such a bound a
/// server that turns everybody away would have no limit.
const DEFAULT_SEARCH_OBJECTIVE: &str = "errors<=1%";

/// Under overload the server may turn requests away, and nothing else.
const DEFAULT_OVERLOAD_OBJECTIVES: [&str; 2] = ["goodput-of-peak>=90%", "unexpected<=0%"];

/// What a run showed.
pub(crate) struct Findings {
    pub(crate) phases: Vec<Phase>,
    /// Of `--find-limit`.
    pub(crate) limit: Option<Limit>,
    /// What every load, or every try of a search, had to hold.
    pub(crate) objectives: Vec<Objective>,
    /// What the overload had to hold.
    pub(crate) overload_objectives: Vec<Objective>,
    /// Loads that did not come about, and why.
    pub(crate) left_out: Vec<String>,
}

/// A run under way.
pub(crate) struct Session<'a> {
    pub(crate) args: &'a Args,
    pub(crate) generator: Generator,
    pub(crate) sampler: Option<Sampler>,
}

impl Session<'_> {
    /// Runs every load.
    pub(crate) async fn run(&self) -> Result<Findings> {
        let mut findings = Findings {
            phases: Vec::new(),
            limit: None,
            objectives: self.args.objectives.clone(),
            overload_objectives: self.args.overload_objectives.clone(),
            left_out: Vec::new(),
        };
        for plan in self.args.plans() {
            self.load(plan, None, &mut findings).await?;
        }
        if let Some(start) = self.args.find_limit {
            self.find_limit(start, &mut findings).await?;
        }
        if let Some(factor) = self.args.overload {
            self.overload(factor, &mut findings).await?;
        }
        Ok(findings)
    }

    /// Runs one load after a rest, unless a bound of the run is reached. Says whether it was run.
    async fn load(&self, plan: Plan, peak: Option<f64>, findings: &mut Findings) -> Result<bool> {
        if !findings.phases.is_empty() {
            tokio::time::sleep(self.args.cooldown.0).await;
        }
        if let Some(bound) = self.generator.bounds.ended() {
            findings.left_out.push(format!("{plan}: {}", bound.describe()));
            return Ok(false);
        }
        let good =
            Good { within: self.args.within.map(|within| within.0), degraded: self.args.degraded_is_good };
        let kinds = self.generator.queries.kinds().iter().map(|kind| kind.name.clone());
        let phase = Phase::new(plan, kinds, good);
        let begun = Instant::now();
        let mut phase =
            self.generator.drive(phase, findings.phases.len() as u64, Progress::start(&plan)?).await?;
        let measured_from = begun + plan.warmup;
        phase.usage = self.sampler.as_ref().and_then(|sampler| {
            // Not the wait for late answers: the load is over then.
            sampler.usage(measured_from, measured_from + plan.duration)
        });
        phase.peak_goodput = peak;
        findings.phases.push(phase);
        Ok(true)
    }

    async fn find_limit(&self, start: f64, findings: &mut Findings) -> Result<()> {
        if !findings.objectives.iter().any(Objective::bounds_errors) {
            let default = DEFAULT_SEARCH_OBJECTIVE.parse().map_err(anyhow::Error::msg)?;
            findings.objectives.push(default);
            eprintln!(
                "the search holds {DEFAULT_SEARCH_OBJECTIVE}, too, because no objective is about errors"
            );
        }
        let mut search = Search::new(Settings {
            start,
            most: self.args.limit_max,
            precision: self.args.precision.0,
            confirmations: self.args.confirm,
            max_probes: self.args.max_probes,
        });
        loop {
            let (rate, role) = match search.next() {
                Step::Probe(rate) => (rate, Role::Probe),
                Step::Confirm(rate) => (rate, Role::Confirmation),
                Step::Done(limit) => {
                    findings.limit = Some(limit);
                    return Ok(());
                }
            };
            if !self.load(self.args.open(rate, role), None, findings).await? {
                return Ok(());
            }
            if let Some(phase) = findings.phases.last() {
                search.record(rate, role == Role::Confirmation, holds(phase, &findings.objectives));
            }
        }
    }

    async fn overload(&self, factor: f64, findings: &mut Findings) -> Result<()> {
        if findings.overload_objectives.is_empty() {
            for text in DEFAULT_OVERLOAD_OBJECTIVES {
                findings.overload_objectives.push(text.parse().map_err(anyhow::Error::msg)?);
            }
        }
        let highest = self.args.rate.iter().copied().fold(0.0, f64::max);
        let base = match &findings.limit {
            Some(limit) => limit.rate,
            None => (highest > 0.0).then_some(highest),
        };
        let Some(base) = base else {
            findings.left_out.push("overload: no limit was found that could be multiplied".into());
            return Ok(());
        };
        let peak = findings.phases.iter().map(Phase::goodput).fold(0.0, f64::max);
        self.load(self.args.open(base * factor, Role::Overload), Some(peak), findings).await?;
        Ok(())
    }
}

/// Whether a load held everything, and all of it was sent.
pub(crate) fn holds(phase: &Phase, objectives: &[Objective]) -> bool {
    phase.all.unsent() == 0 && objectives.iter().all(|objective| objective.judge(phase).holds)
}

/// Sees to it that every objective about a kind names one that is asked.
///
/// # Errors
///
/// The objective whose kind there is not.
pub(crate) fn check_kinds(args: &Args, names: &[&str]) -> Result<(), String> {
    for objective in args.objectives.iter().chain(&args.overload_objectives) {
        if let Some(kind) = objective.kind()
            && !names.contains(&kind)
        {
            return Err(format!(
                "--objective {objective}: there is no kind {kind:?}, only {}",
                names.join(", ")
            ));
        }
    }
    Ok(())
}

/// Brings the hot queries of every kind into the server's cache.
pub(crate) async fn prime(generator: &Generator) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let queries = Arc::clone(&generator.queries);
    for kind in queries.kinds().iter().filter(|kind| kind.source == crate::kinds::Source::Hot) {
        notes.extend(generator.target.prime(kind, queries.hot()).await?);
    }
    Ok(notes)
}
