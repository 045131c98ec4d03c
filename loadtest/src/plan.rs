//! What a load is: what makes requests start, for how long, and what the load is for.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

/// How an open loop's arrivals are spread over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arrivals {
    /// One every 1/rate seconds.
    Even,
    /// At random moments, as independent users come (exponential gaps, mean 1/rate).
    Poisson,
}

/// What makes requests start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// Arrivals that don't wait for answers.
    Open { rate: f64, arrivals: Arrivals },
    /// Connections that ask again when they have an answer.
    Closed { connections: usize },
}

/// What a load is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Asked for as it is.
    Load,
    /// A try of `--find-limit`.
    Probe,
    /// The try that proves a limit.
    Confirmation,
    /// A multiple of the limit.
    Overload,
}

/// One load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) pace: Pace,
    pub(crate) role: Role,
    /// The load before the measured time.
    pub(crate) warmup: Duration,
    /// The measured time.
    pub(crate) duration: Duration,
}

impl Plan {
    /// Requests a second of an open loop.
    pub(crate) fn rate(&self) -> Option<f64> {
        match self.pace {
            Pace::Open { rate, .. } => Some(rate),
            Pace::Closed { .. } => None,
        }
    }
}

impl Plan {
    /// For a table: `probe 83/s`, `20/s`, `8 connections`.
    pub(crate) fn brief(&self) -> String {
        let role = match self.role {
            Role::Load => "",
            role => role.name(),
        };
        let pace = match self.pace {
            Pace::Open { rate, .. } => format!("{}/s", short(rate)),
            Pace::Closed { connections: 1 } => "1 connection".into(),
            Pace::Closed { connections } => format!("{connections} connections"),
        };
        format!("{role} {pace}").trim_start().to_owned()
    }
}

impl Role {
    /// Its word in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Probe => "probe",
            Self::Confirmation => "confirmation",
            Self::Overload => "overload",
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Load => {}
            role => write!(f, "{}: ", role.name())?,
        }
        match self.pace {
            Pace::Open { rate, arrivals: Arrivals::Even } => {
                write!(f, "open loop, {} requests/s", short(rate))
            }
            Pace::Open { rate, arrivals: Arrivals::Poisson } => {
                write!(f, "open loop, {} requests/s (Poisson)", short(rate))
            }
            Pace::Closed { connections: 1 } => write!(f, "closed loop, 1 connection"),
            Pace::Closed { connections } => write!(f, "closed loop, {connections} connections"),
        }
    }
}

/// A number with at most three decimals and no needless zeros.
pub(crate) fn short(value: f64) -> String {
    let rounded = (value * 1000.0).round() / 1000.0 + 0.0; // -0 is 0
    rounded.to_string()
}
