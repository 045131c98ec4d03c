//! `bundle.json`: its members, and what they may be.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::FORMAT;
use crate::expander::{MAX_EXPANSIONS, PromptTemplate, Q2D};

/// Longest name of a bundle in bytes.
const LONGEST_NAME: usize = 128;

/// What `bundle.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BundleManifest)]
pub struct Manifest {
    /// The layout of this file: [`FORMAT`].
    pub format: u32,
    /// What people call it; need not be unique.
    pub name: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Φ.
    pub encoder: EncoderPart,
    /// Θ; none: no language model.
    #[serde(default)]
    pub expander: Option<ExpanderPart>,
    /// What the expander is asked, `{}` being the query; none: the paper's Q2D.
    #[serde(default)]
    pub prompt: Option<String>,
    /// The gate's file, one of [`Manifest::files`]; none: expansion `auto` is refused.
    #[serde(default)]
    pub gate: Option<String>,
    /// What a search gets that doesn't say.
    #[serde(default)]
    pub defaults: Defaults,
    /// The ids of what encoder and expander mean on this machine; none until the bundle is registered.
    #[serde(default)]
    pub ids: Option<Ids>,
    /// Everything in the bundle's folder but the manifest: path with forward slashes → SHA-256, lower-case hexadecimal.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// The ids of the bundles that it comes from.
    #[serde(default)]
    pub parents: Vec<String>,
    /// The training recipe, one of [`Manifest::files`].
    #[serde(default)]
    pub recipe: Option<String>,
    /// What it was trained on: a file's name → SHA-256.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
    /// Figures of its evaluation, in any form.
    #[serde(default)]
    pub evaluation: Option<Value>,
}

/// The encoder of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EncoderPart {
    /// A folder of the bundle, else whatever [`weights::resolve`](crate::weights::resolve) finds by this name.
    pub model: String,
    /// A folder of the bundle with a LoRA adapter (PEFT's layout).
    #[serde(default)]
    pub adapter: Option<String>,
}

/// The language model of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpanderPart {
    /// A folder of the bundle, the base URL of an OpenAI-compatible server, else whatever
    /// [`weights::resolve`](crate::weights::resolve) finds by this name.
    pub model: String,
    /// A folder of the bundle with a LoRA adapter (PEFT's layout).
    #[serde(default)]
    pub adapter: Option<String>,
    /// The model's name on that server.
    #[serde(default)]
    pub remote_model: Option<String>,
}

impl ExpanderPart {
    /// Whether it is the URL of a server.
    pub fn is_remote(&self) -> bool {
        self.model.starts_with("http://") || self.model.starts_with("https://")
    }
}

/// Whether to expand when a request doesn't say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExpansionDefault {
    /// Expand.
    Always,
    /// Expand where the gate expects a gain.
    Auto,
    /// Search with the query alone.
    Off,
}

/// What a search gets that doesn't say; what is none here is left to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BundleDefaults)]
pub struct Defaults {
    /// Whether to expand.
    #[serde(default)]
    pub expansion: Option<ExpansionDefault>,
    /// The query's share in the averaged vector, 0 to 1.
    #[serde(default)]
    pub query_weight: Option<f32>,
    /// Passages that are written and averaged, 1 to 8.
    #[serde(default)]
    pub count: Option<usize>,
    /// Most tokens of a passage.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// 0 is greedy.
    #[serde(default)]
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    #[serde(default)]
    pub top_p: Option<f32>,
    /// Whether a passage is embedded behind its query, as one text.
    #[serde(default)]
    pub joint_encoding: Option<bool>,
}

impl Defaults {
    /// These, and where they are silent `others`.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            expansion: self.expansion.or(others.expansion),
            query_weight: self.query_weight.or(others.query_weight),
            count: self.count.or(others.count),
            max_tokens: self.max_tokens.or(others.max_tokens),
            temperature: self.temperature.or(others.temperature),
            top_p: self.top_p.or(others.top_p),
            joint_encoding: self.joint_encoding.or(others.joint_encoding),
        }
    }
}

/// What encoder and expander were when the bundle was registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ModelIds)]
pub struct Ids {
    /// [`EncoderInfo::id`](crate::EncoderInfo::id).
    pub encoder: String,
    /// [`weights_id`](crate::weights::weights_id) of the language model, followed by `+` and that of its adapter; the
    /// model's name for one on a server.
    #[serde(default)]
    pub expander: Option<String>,
}

impl Manifest {
    /// A manifest of these models and nothing else.
    pub fn new(name: &str, created_at: &str, encoder: EncoderPart, expander: Option<ExpanderPart>) -> Self {
        Self {
            format: FORMAT,
            name: name.into(),
            created_at: created_at.into(),
            encoder,
            expander,
            prompt: None,
            gate: None,
            defaults: Defaults::default(),
            ids: None,
            files: BTreeMap::new(),
            parents: Vec::new(),
            recipe: None,
            data: BTreeMap::new(),
            evaluation: None,
        }
    }

    /// What the expander is asked.
    pub fn prompt_text(&self) -> &str {
        self.prompt.as_deref().unwrap_or(Q2D)
    }

    /// Whether `folder` is a folder of this bundle.
    pub fn owns_folder(&self, folder: &str) -> bool {
        !folder.contains('/')
            && self.files.keys().any(|file| {
                file.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
            })
    }

    /// Says what of it can't be; `bundle.json` is not named, the caller knows where it stands.
    ///
    /// # Errors
    /// The member in question, what is wrong with it, and the remedy.
    pub fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("`format` is {}, and this version understands {FORMAT}", self.format));
        }
        let name = self.name.trim();
        if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
            return Err(format!("`name` must be a line of 1 to {LONGEST_NAME} bytes"));
        }
        for (path, hash) in &self.files {
            if !stays_inside(path) {
                return Err(format!("`files` names `{path}`, which is not a plain path inside the bundle"));
            }
            let is_hash =
                hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if !is_hash {
                return Err(format!("`files` gives `{path}` a hash that is no SHA-256 in lower-case digits"));
            }
        }
        self.check_models()?;
        for (member, file) in [("gate", &self.gate), ("recipe", &self.recipe)] {
            if let Some(file) = file
                && !self.files.contains_key(file)
            {
                return Err(format!("`{member}` names `{file}`, which is not among `files`"));
            }
        }
        if let Some(prompt) = &self.prompt {
            PromptTemplate::for_query(prompt).map_err(|error| format!("`prompt`: {error}"))?;
        }
        self.check_defaults()
    }

    fn check_models(&self) -> Result<(), String> {
        model_name("encoder.model", &self.encoder.model)?;
        let mut adapters = vec![("encoder.adapter", &self.encoder.adapter)];
        if let Some(expander) = &self.expander {
            model_name("expander.model", &expander.model)?;
            adapters.push(("expander.adapter", &expander.adapter));
            if expander.is_remote() && expander.adapter.is_some() {
                return Err(
                    "`expander.adapter` is for a language model in this process, and `expander.model` \
                            is a server; let that server load it"
                        .into(),
                );
            }
            if !expander.is_remote() && expander.remote_model.is_some() {
                return Err(
                    "`expander.remote_model` is for a language model on a server; leave it out".into()
                );
            }
        }
        for (member, adapter) in adapters {
            if let Some(adapter) = adapter
                && !self.owns_folder(adapter)
            {
                return Err(format!(
                    "`{member}` is `{adapter}`, and no file of the bundle is in that folder"
                ));
            }
        }
        if let Some(ids) = &self.ids
            && ids.expander.is_some() != self.expander.is_some()
        {
            return Err("`ids` and `expander` disagree on whether there is a language model".into());
        }
        Ok(())
    }

    fn check_defaults(&self) -> Result<(), String> {
        let Defaults { expansion, query_weight, count, max_tokens, temperature, top_p, joint_encoding: _ } =
            self.defaults;
        if expansion == Some(ExpansionDefault::Auto) && self.gate.is_none() {
            return Err("`defaults.expansion` is auto, which needs a `gate`".into());
        }
        if query_weight.is_some_and(|weight| !(0.0..=1.0).contains(&weight)) {
            return Err("`defaults.query_weight` is not between 0 and 1".into());
        }
        if count.is_some_and(|count| !(1..=MAX_EXPANSIONS).contains(&count)) {
            return Err(format!("`defaults.count` is not between 1 and {MAX_EXPANSIONS}"));
        }
        if count.is_some_and(|count| count > 1) && temperature.is_none_or(|temperature| temperature == 0.0) {
            return Err("`defaults.count` is above 1, which needs a `defaults.temperature` above 0".into());
        }
        if max_tokens == Some(0) {
            return Err("`defaults.max_tokens` is 0; say at least 1".into());
        }
        if temperature.is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
            return Err("`defaults.temperature` is not between 0 and 2".into());
        }
        if top_p.is_some_and(|top_p| !(top_p > 0.0 && top_p <= 1.0)) {
            return Err("`defaults.top_p` is not above 0 and at most 1".into());
        }
        Ok(())
    }
}

/// A model's name must be one, and not a way out of the models folder in disguise.
fn model_name(member: &str, model: &str) -> Result<(), String> {
    if model.trim().is_empty() {
        return Err(format!("`{member}` is empty"));
    }
    if !model.contains('/') && model.starts_with('.') {
        return Err(format!("`{member}` is `{model}`, which is no name"));
    }
    Ok(())
}

/// Whether a path with forward slashes is relative and plain: no `..`, no `.`, nothing empty, no drive.
pub(super) fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', '\0', ':'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let encoder = EncoderPart { model: "encoder".into(), adapter: None };
        let expander = ExpanderPart { model: "small".into(), adapter: None, remote_model: None };
        let mut manifest = Manifest::new("test", "2026-11-26T15:00:00Z", encoder, Some(expander));
        manifest.files.insert("encoder/config.json".into(), "0".repeat(64));
        manifest
    }

    fn refused(change: impl FnOnce(&mut Manifest)) -> String {
        let mut changed = manifest();
        change(&mut changed);
        changed.check().unwrap_err()
    }

    #[test]
    fn what_is_left_out_is_silent_and_what_is_unknown_is_refused() {
        let text = r#"{"format": 1, "name": "n", "created_at": "t", "encoder": {"model": "m"}}"#;
        let read: Manifest = serde_json::from_str(text).unwrap();
        read.check().unwrap();
        assert_eq!((read.prompt_text(), read.defaults), (Q2D, Defaults::default()));
        for unknown in [
            r#"{"format": 1, "name": "n", "created_at": "t", "encoder": {"model": "m"}, "colour": "blue"}"#,
            r#"{"format": 1, "name": "n", "created_at": "t", "encoder": {"model": "m", "layers": 2}}"#,
            r#"{"format": 1, "name": "n", "created_at": "t", "encoder": {"model": "m"}, "defaults": {"top_k": 3}}"#,
        ] {
            let error = serde_json::from_str::<Manifest>(unknown).unwrap_err().to_string();
            assert!(error.contains("unknown field"), "{error}");
        }
    }

    #[test]
    fn what_it_says_comes_back() {
        manifest().check().unwrap();
        let mut full = manifest();
        full.defaults = Defaults { query_weight: Some(0.65), max_tokens: Some(48), ..Defaults::default() };
        full.ids = Some(Ids { encoder: "a@1".into(), expander: Some("b@2".into()) });
        full.evaluation = Some(serde_json::json!({"ndcg@10": 0.5}));
        let text = serde_json::to_string(&full).unwrap();
        assert!(text.contains(r#""query_weight":0.65"#), "{text}");
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), full);
    }

    #[test]
    fn each_wrong_member_is_named() {
        type Change<'a> = &'a dyn Fn(&mut Manifest);
        let cases: [(&str, Change<'_>); 16] = [
            ("`format` is 2", &|m| m.format = 2),
            ("`name`", &|m| m.name = " ".into()),
            ("`encoder.model` is empty", &|m| m.encoder.model = String::new()),
            ("`encoder.model` is `..`", &|m| m.encoder.model = "..".into()),
            ("`encoder.adapter` is `lora`", &|m| m.encoder.adapter = Some("lora".into())),
            ("`gate` names", &|m| m.gate = Some("gate.json".into())),
            ("`recipe` names", &|m| m.recipe = Some("recipe.toml".into())),
            ("`prompt`", &|m| m.prompt = Some("no slot".into())),
            ("auto, which needs a `gate`", &|m| m.defaults.expansion = Some(ExpansionDefault::Auto)),
            ("`defaults.query_weight`", &|m| m.defaults.query_weight = Some(1.5)),
            ("`defaults.count` is not between", &|m| m.defaults.count = Some(9)),
            ("`defaults.count` is above 1", &|m| m.defaults.count = Some(2)),
            ("`defaults.count` is above 1", &|m| {
                m.defaults = Defaults { count: Some(2), temperature: Some(0.0), ..Defaults::default() };
            }),
            ("`defaults.top_p`", &|m| m.defaults.top_p = Some(0.0)),
            ("`ids` and `expander`", &|m| m.ids = Some(Ids { encoder: "a".into(), expander: None })),
            ("no SHA-256", &|m| drop(m.files.insert("a".into(), "A".repeat(64)))),
        ];
        for (expected, change) in cases {
            let error = refused(change);
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn no_path_leaves_the_folder() {
        for path in ["../a", "/etc/passwd", "a/../../b", "a//b", "", ".", "a/.", "c:\\x", "a\\b"] {
            let error = refused(|m| drop(m.files.insert(path.into(), "0".repeat(64))));
            assert!(error.contains("not a plain path"), "{path}: {error}");
        }
        assert!(stays_inside("encoder/1_Pooling/config.json"));
    }

    #[test]
    fn a_server_has_no_adapter() {
        let error = refused(|m| {
            let adapter = Some("encoder".into());
            m.expander = Some(ExpanderPart {
                model: "http://host/v1".into(),
                adapter,
                remote_model: Some("x".into()),
            });
        });
        assert!(error.contains("let that server load it"), "{error}");
    }

    #[test]
    fn flags_go_before_bundles() {
        let flags = Defaults { max_tokens: Some(10), ..Defaults::default() };
        let bundle =
            Defaults { count: Some(4), max_tokens: Some(48), query_weight: Some(0.7), ..Defaults::default() };
        let both = flags.or(bundle);
        assert_eq!((both.max_tokens, both.query_weight, both.top_p), (Some(10), Some(0.7), None));
        assert_eq!(both.count, Some(4));
    }
}
