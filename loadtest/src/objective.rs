//! What must hold: `p99<350ms`, `errors<0.1%`, `own.p50<1ms`, `cached:p95<20ms`.

use std::fmt;
use std::str::FromStr;

use crate::figures::Figures;
use crate::measure::Phase;
use crate::times::Times;

/// One condition on the figures of a load.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Objective {
    text: String,
    /// Only of this kind of request.
    kind: Option<String>,
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
    Share(Share),
    /// Searches a second.
    Throughput,
    Goodput,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Share {
    /// Searches without hits.
    Errors,
    /// Searches turned away by 429 or 503.
    Refused,
    /// Requests turned away by 429.
    Shed,
    /// Searches neither answered nor refused.
    Unexpected,
    /// Searches answered as wanted.
    Good,
    /// Answered searches with this expansion status.
    Expansion(&'static str),
    /// Goodput by the highest of the loads before.
    GoodputOfPeak,
    /// How much the server's memory grew.
    MemoryGrowth,
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
        let figures = match &self.kind {
            None => Some(&phase.all),
            Some(name) => phase.kind(name),
        };
        let measured = figures.and_then(|figures| self.figure.measure(phase, figures));
        let holds = measured.is_some_and(|measured| match self.comparison {
            Comparison::Less => measured < self.limit,
            Comparison::LessOrEqual => measured <= self.limit,
            Comparison::Greater => measured > self.limit,
            Comparison::GreaterOrEqual => measured >= self.limit,
        });
        Verdict { measured, holds }
    }

    /// The kind that it is about.
    pub(crate) fn kind(&self) -> Option<&str> {
        self.kind.as_deref()
    }

    /// Whether it bounds how many searches may go without an answer.
    pub(crate) fn bounds_errors(&self) -> bool {
        matches!(self.figure, Figure::Share(Share::Errors | Share::Good | Share::Refused | Share::Shed))
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
    fn measure(&self, phase: &Phase, figures: &Figures) -> Option<f64> {
        match self {
            Self::Time { series, statistic } => {
                let times = match series {
                    None => &figures.latency,
                    Some(name) => phase.server.get(name)?,
                };
                (times.count() > 0).then(|| statistic.of(times))
            }
            _ if figures.requests == 0 => None,
            Self::Share(share) => share.measure(phase, figures),
            Self::Throughput => Some(phase.per_second(figures.tally.answered)),
            Self::Goodput => Some(phase.per_second(figures.tally.good)),
        }
    }

    /// Whether it is of the whole server, not of a kind of request.
    fn is_of_the_server(&self) -> bool {
        matches!(
            self,
            Self::Time { series: Some(_), .. } | Self::Share(Share::GoodputOfPeak | Share::MemoryGrowth)
        )
    }
}

impl Share {
    fn measure(self, phase: &Phase, figures: &Figures) -> Option<f64> {
        match self {
            Self::Errors => Some(figures.error_share()),
            Self::Refused => Some(figures.refused_share()),
            Self::Shed => Some(figures.shed_share()),
            Self::Unexpected => Some(figures.unexpected_share()),
            Self::Good => Some(figures.good_share()),
            Self::Expansion(status) => (figures.tally.answered > 0).then(|| figures.expansion_share(status)),
            Self::GoodputOfPeak => phase.goodput_of_peak(),
            Self::MemoryGrowth => phase.usage.as_ref()?.memory_growth(),
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
                "{detail}; write an objective like p99<350ms, own.p50<1ms, errors<0.1%, degraded<=5%, good>=90%, \
                 unexpected<=0%, goodput>20/s or, of one kind of request, cached:p95<20ms"
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
        let (kind, name) = match name.trim().split_once(':') {
            Some((kind, name)) => (Some(kind.trim().to_owned()), name.trim()),
            None => (None, name.trim()),
        };
        let figure = parse_figure(name).ok_or_else(|| wrong("it names no known figure"))?;
        if kind.is_some() && figure.is_of_the_server() {
            return Err(wrong("this figure is of the whole server, not of a kind of request"));
        }
        let limit =
            parse_limit(&figure, value.trim()).ok_or_else(|| wrong("the limit or its unit is wrong"))?;
        Ok(Self { text: text.to_owned(), kind, figure, comparison, limit })
    }
}

fn parse_figure(name: &str) -> Option<Figure> {
    match name {
        "errors" => return Some(Figure::Share(Share::Errors)),
        "refused" => return Some(Figure::Share(Share::Refused)),
        "shed" => return Some(Figure::Share(Share::Shed)),
        "unexpected" => return Some(Figure::Share(Share::Unexpected)),
        "good" => return Some(Figure::Share(Share::Good)),
        "degraded" => return Some(Figure::Share(Share::Expansion("degraded"))),
        "cached" => return Some(Figure::Share(Share::Expansion("cached"))),
        "applied" => return Some(Figure::Share(Share::Expansion("applied"))),
        "goodput-of-peak" => return Some(Figure::Share(Share::GoodputOfPeak)),
        "memory-growth" => return Some(Figure::Share(Share::MemoryGrowth)),
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
        (Figure::Share(_), "%") => Some(number / 100.0),
        (Figure::Share(_), "") => Some(number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Good;
    use crate::measure::tests::{phase as empty, sample};

    fn phase() -> Phase {
        let mut phase = empty(10, Good::default());
        for number in 1..=100 {
            let (status, expansions) = match number {
                99 => (Ok(429), &[][..]),
                100 => (Ok(500), &[][..]),
                _ => (Ok(200), &["applied"][..]),
            };
            phase.record(&sample(status, number, expansions));
        }
        phase.peak_goodput = Some(10.0);
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
            ("good>=98%", true),
            ("refused<=1%", true),
            ("unexpected<=0%", false),
            ("unexpected<=1%", true),
            ("goodput-of-peak>=98%", true),
            ("goodput-of-peak>=99%", false),
            ("memory-growth<=100%", false),
            ("all:p99<100ms", true),
            ("all:errors<1%", false),
            ("other:p99<100s", false),
        ] {
            let objective: Objective = text.parse().unwrap();
            assert_eq!(objective.judge(&phase).holds, holds, "{text}: {:?}", objective.judge(&phase));
        }
    }

    #[test]
    fn nothing_measured_holds_nothing() {
        let empty = empty(1, Good::default());
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
            "cached:own.p50<1ms",
            "cached:memory-growth<5%",
            "cached:",
        ] {
            assert!(text.parse::<Objective>().is_err(), "{text}");
        }
    }
}
