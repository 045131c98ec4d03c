//! What a search gets that doesn't say: what a flag of the server says, else what the bundle says, else what is built in.

use expandr_models::{
    bundle::{Defaults, ExpansionDefault},
    gate::Gate,
};

use super::{check::SearchLimits, request::ExpansionMode};
use crate::bundle::Bundle;

/// Tokens of a passage where neither flag nor bundle says.
const MAX_TOKENS: usize = 64;
/// Temperature of several passages where neither flag nor bundle says one above 0: the model's own distribution.
const SAMPLED: f32 = 1.0;

/// What a search gets that doesn't say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchDefaults {
    /// Whether to expand.
    pub expansion: ExpansionMode,
    /// The query's share; none: the gate's where it decides, else 0.5.
    pub query_weight: Option<f32>,
    /// Passages that are written and averaged. More than one are sampled.
    pub count: usize,
    /// Most tokens of a passage.
    pub max_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus sampling, where it is sampled; none: 0.9.
    pub top_p: Option<f32>,
    /// Whether a passage is embedded behind its query; none: as the gate's were where it decides, else not.
    pub joint_encoding: Option<bool>,
}

/// What of a bundle a request is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Grounds<'a> {
    /// What the request gets that doesn't say.
    pub defaults: SearchDefaults,
    /// What decides in mode `auto`.
    pub gate: Option<&'a Gate>,
}

impl SearchDefaults {
    /// Flags before the bundle's own; without a language model nothing is expanded.
    pub fn of(limits: &SearchLimits, bundle: Defaults, has_expander: bool) -> Self {
        let said = limits.flags.or(bundle);
        let expansion = match said.expansion {
            _ if !has_expander => ExpansionMode::Off,
            None | Some(ExpansionDefault::Always) => ExpansionMode::Always,
            Some(ExpansionDefault::Auto) => ExpansionMode::Auto,
            Some(ExpansionDefault::Off) => ExpansionMode::Off,
        };
        // A flag that says greedy says one, whatever the bundle says.
        let greedy = limits.flags.temperature == Some(0.0);
        let count = if greedy { 1 } else { said.count.unwrap_or(1) };
        let temperature = said.temperature.unwrap_or(0.0);
        Self {
            expansion,
            query_weight: said.query_weight,
            max_tokens: said.max_tokens.unwrap_or(MAX_TOKENS).min(limits.max_tokens),
            count,
            temperature: if count > 1 && temperature == 0.0 { SAMPLED } else { temperature },
            top_p: said.top_p,
            joint_encoding: said.joint_encoding,
        }
    }
}

impl<'a> Grounds<'a> {
    /// Those that `bundle` gives.
    pub fn of(limits: &SearchLimits, bundle: &'a Bundle) -> Self {
        let defaults = SearchDefaults::of(limits, bundle.defaults, bundle.expander.is_some());
        Self { defaults, gate: bundle.gate.as_deref() }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::check::tests::limits, *};

    #[test]
    fn a_flag_goes_before_a_bundle_and_a_bundle_before_what_is_built_in() {
        let none = Defaults::default();
        let bundle = Defaults {
            expansion: Some(ExpansionDefault::Auto),
            query_weight: Some(0.7),
            count: Some(4),
            max_tokens: Some(48),
            temperature: Some(0.7),
            top_p: Some(0.8),
            joint_encoding: Some(true),
        };
        let built_in = SearchDefaults::of(&limits(), none, true);
        assert_eq!((built_in.expansion, built_in.max_tokens), (ExpansionMode::Always, 64));
        assert_eq!((built_in.query_weight, built_in.temperature, built_in.top_p), (None, 0.0, None));
        let of_bundle = SearchDefaults::of(&limits(), bundle, true);
        assert_eq!((of_bundle.expansion, of_bundle.max_tokens), (ExpansionMode::Auto, 48));
        assert_eq!((of_bundle.query_weight, of_bundle.temperature), (Some(0.7), 0.7));
        assert_eq!((built_in.joint_encoding, of_bundle.joint_encoding), (None, Some(true)));
        let flags = Defaults {
            expansion: Some(ExpansionDefault::Off),
            max_tokens: Some(10_000),
            query_weight: Some(0.6),
            ..none
        };
        let with_flags = SearchDefaults::of(&SearchLimits { flags, ..limits() }, bundle, true);
        assert_eq!((with_flags.expansion, with_flags.query_weight), (ExpansionMode::Off, Some(0.6)));
        assert_eq!((with_flags.max_tokens, with_flags.top_p), (256, Some(0.8)), "no more than is allowed");
        assert_eq!(SearchDefaults::of(&limits(), bundle, false).expansion, ExpansionMode::Off);
    }

    #[test]
    fn several_passages_are_sampled_and_a_flag_that_says_greedy_leaves_one() {
        let none = Defaults::default();
        let several = Defaults { count: Some(4), temperature: Some(0.7), ..none };
        let found = |flags: Defaults, bundle: Defaults| {
            let found = SearchDefaults::of(&SearchLimits { flags, ..limits() }, bundle, true);
            (found.count, found.temperature)
        };
        assert_eq!(found(none, none), (1, 0.0));
        assert_eq!(found(none, several), (4, 0.7));
        assert_eq!(found(Defaults { count: Some(2), ..none }, several), (2, 0.7));
        assert_eq!(found(Defaults { count: Some(1), ..none }, several), (1, 0.7));
        let greedy = Defaults { temperature: Some(0.0), ..none };
        assert_eq!(found(greedy, several), (1, 0.0));
        assert_eq!(found(Defaults { count: Some(2), ..none }, none), (2, 1.0));
        assert_eq!(found(Defaults { count: Some(2), ..none }, greedy), (2, 1.0));
    }
}
