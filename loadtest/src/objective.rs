//! What must hold: `p99<350ms`, `errors<0.1%`, `own.p50<1ms`.

use std::fmt;
use std::str::FromStr;

use crate::measure::{Phase, Times};

/// One condition on the figures of a load.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Objective {
    text: String,
    figure: Figure,
    comparison: Comparison,
    limit: f64,
}

#[derive(Clone, Debug, PartialEq)]
enum Figure {
    /// Of latency, or of a series that the server reports (`own`, `took`, a stage): milliseconds.
    Time {
        series: Option<String>,
        statistic: Statistic,
    },
    /// Fractions.
    Errors,
    Shed,
    Expansion(&'static str),
    /// Searches a second.
    Throughput,
    Goodput,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Statistic {
    Percentile(f64),
    Mean,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Whether an objective holds under one load. Without a measurement it doesn't.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// In the unit of the limit: milliseconds, a fraction, or searches a second.
    pub(crate) measured: Option<f64>,
    pub(crate) holds: bool,
}

impl Objective {
    pub(crate) fn judge(&self, phase: &Phase) -> Verdict {
        let measured = self.figure.measure(phase);
        let holds = measured.is_some_and(|measured| match self.comparison {
            Comparison::Less => measured < self.limit,
            Comparison::LessOrEqual => measured <= self.limit,
            Comparison::Greater => measured > self.limit,
            Comparison::GreaterOrEqual => measured >= self.limit,
        });
        Verdict { measured, holds }
    }

    /// A measured value with the unit of this objective.
    pub(crate) fn format(&self, measured: f64) -> String {
        match self.figure {
            Figure::Time { .. } => format!("{measured:.3} ms"),
            Figure::Throughput | Figure::Goodput => format!("{measured:.2}/s"),
            _ => format!("{:.3} %", measured * 100.0),
        }
    }
}

impl Figure {
    fn measure(&self, phase: &Phase) -> Option<f64> {
        match self {
            Self::Time { series, statistic } => {
                let times = match series {
                    None => &phase.latency,
                    Some(name) => phase.server.get(name)?,
                };
                (times.count() > 0).then(|| statistic.of(times))
            }
            _ if phase.requests == 0 => None,
            Self::Errors => Some(phase.error_share()),
            Self::Shed => Some(phase.shed_share()),
            Self::Expansion(status) => (phase.answered > 0).then(|| phase.expansion_share(status)),
            Self::Throughput => Some(phase.throughput()),
            Self::Goodput => Some(phase.goodput()),
        }
    }
}

impl Statistic {
    fn of(self, times: &Times) -> f64 {
        match self {
            Self::Percentile(percentile) => times.percentile_ms(percentile),
            Self::Mean => times.mean_ms(),
            Self::Max => times.max_ms(),
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |detail: &str| {
            format!(
                "{detail}; write an objective like p99<350ms, own.p50<1ms, errors<0.1%, degraded<=5% or goodput>20/s"
            )
        };
        let at = text.find(['<', '>']).ok_or_else(|| wrong("no < or > in it"))?;
        let (name, rest) = text.split_at(at);
        let (comparison, value) = match (&rest[..1], rest[1..].strip_prefix('=')) {
            ("<", Some(value)) => (Comparison::LessOrEqual, value),
            ("<", None) => (Comparison::Less, &rest[1..]),
            (_, Some(value)) => (Comparison::GreaterOrEqual, value),
            (_, None) => (Comparison::Greater, &rest[1..]),
        };
        let figure = parse_figure(name.trim()).ok_or_else(|| wrong("it names no known figure"))?;
        let limit =
            parse_limit(&figure, value.trim()).ok_or_else(|| wrong("the limit or its unit is wrong"))?;
        Ok(Self { text: text.to_owned(), figure, comparison, limit })
    }
}

fn parse_figure(name: &str) -> Option<Figure> {
    match name {
        "errors" => return Some(Figure::Errors),
        "shed" => return Some(Figure::Shed),
        "degraded" => return Some(Figure::Expansion("degraded")),
        "cached" => return Some(Figure::Expansion("cached")),
        "applied" => return Some(Figure::Expansion("applied")),
        "throughput" => return Some(Figure::Throughput),
        "goodput" => return Some(Figure::Goodput),
        _ => {}
    }
    // A percentile may hold a dot itself (p99.9), so the series ends at the first dot before a statistic.
    if let Some(statistic) = parse_statistic(name) {
        return Some(Figure::Time { series: None, statistic });
    }
    let (series, statistic) = name.split_once('.')?;
    let statistic = parse_statistic(statistic)?;
    (!series.is_empty()).then(|| Figure::Time { series: Some(series.to_owned()), statistic })
}

fn parse_statistic(name: &str) -> Option<Statistic> {
    match name {
        "max" => Some(Statistic::Max),
        "mean" => Some(Statistic::Mean),
        _ => {
            let percentile: f64 = name.strip_prefix('p')?.parse().ok()?;
            (percentile > 0.0 && percentile <= 100.0).then_some(Statistic::Percentile(percentile))
        }
    }
}

/// In milliseconds, as a fraction, or a second.
fn parse_limit(figure: &Figure, text: &str) -> Option<f64> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic() || c == '%' || c == '/') {
        Some(at) => (text[..at].trim(), &text[at..]),
        None => (text, ""),
    };
    let number: f64 = number.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)?;
    match (figure, unit) {
        (Figure::Time { .. }, "us") => Some(number / 1e3),
        (Figure::Time { .. }, "ms") => Some(number),
        (Figure::Time { .. }, "s") => Some(number * 1e3),
        (Figure::Throughput | Figure::Goodput, "/s" | "") => Some(number),
        (Figure::Errors | Figure::Shed | Figure::Expansion(_), "%") => Some(number / 100.0),
        (Figure::Errors | Figure::Shed | Figure::Expansion(_), "") => Some(number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::args::Plan;
    use crate::measure::Sample;
    use crate::target::{Outcome, SearchOutcome};

    fn phase() -> Phase {
        let mut phase = Phase::new(Plan::Closed { connections: 1 }, Duration::from_secs(10), None, 1);
        for number in 1..=100 {
            let latency = Duration::from_millis(number);
            let mut search = SearchOutcome { expansion: "applied".into(), ..SearchOutcome::default() };
            search.times_ms.insert("own".into(), 0.5);
            let status = if number <= 98 { Ok(200) } else { Ok(500) };
            let searches = if number <= 98 { vec![search] } else { Vec::new() };
            let outcome = Outcome { status, searches, elapsed: latency, detail: None };
            phase.record(Sample { latency, lag: Duration::ZERO, outcome: Some(outcome) });
        }
        phase
    }

    #[test]
    fn objectives_are_judged_on_the_figures() {
        let phase = phase();
        for (text, holds) in [
            ("p99<100ms", true),
            ("p50 < 40ms", false),
            ("p99.9<=0.1s", true),
            ("max<98ms", false),
            ("mean<60ms", true),
            ("own.p50<1ms", true),
            ("own.p50<400us", false),
            ("unheard.p50<1s", false),
            ("errors<0.1%", false),
            ("errors<=2%", true),
            ("degraded<0.01", true),
            ("applied>=100%", true),
            ("throughput>9/s", true),
            ("goodput>9.8", false),
        ] {
            let objective: Objective = text.parse().unwrap();
            assert_eq!(objective.judge(&phase).holds, holds, "{text}: {:?}", objective.judge(&phase));
        }
    }

    #[test]
    fn nothing_measured_holds_nothing() {
        let empty = Phase::new(Plan::Closed { connections: 1 }, Duration::from_secs(1), None, 1);
        for text in ["p99<350ms", "errors<1%", "degraded<1%"] {
            assert!(!text.parse::<Objective>().unwrap().judge(&empty).holds, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "p99",
            "p99<",
            "p99<3",
            "p101<3ms",
            "errors<3ms",
            "speed<3ms",
            "p99<-3ms",
            ".p50<1ms",
            "throughput<3%",
        ] {
            assert!(text.parse::<Objective>().is_err(), "{text}");
        }
    }
}
