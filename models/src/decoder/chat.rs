//! The chat template around a user's message.

use std::path::Path;

use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};
use serde::Deserialize;

use crate::{
    Error, Result,
    folder::{checkpoint_error, read_json},
};

const NAME: &str = "chat_template";

/// A checkpoint's chat template, rendered as transformers' `apply_chat_template` does it.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialNames,
}

/// The texts of special tokens that templates name.
#[derive(Default)]
struct SpecialNames {
    bos: Option<String>,
    eos: Option<String>,
    unk: Option<String>,
    pad: Option<String>,
}

#[derive(Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    unk_token: Option<Token>,
    pad_token: Option<Token>,
}

/// One template, or several by name, of which `default` is for plain chats.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

impl Token {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Object { content } => content,
        }
    }
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or the template in `tokenizer_config.json`.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer_config.json");
        let config: TokenizerConfig =
            read_json(&path, "copy it from the model that the checkpoint was made from")?;
        let file = folder.join("chat_template.jinja");
        let template = match config.chat_template {
            _ if file.is_file() => Some(fs_err::read_to_string(&file)?),
            Some(Templates::One(template)) => Some(template),
            Some(Templates::Named(named)) => {
                named.into_iter().find(|entry| entry.name == "default").map(|entry| entry.template)
            }
            None => None,
        };
        let template = template.ok_or_else(|| {
            checkpoint_error(&path, "it has no chat template; give an instruction-tuned model".into())
        })?;
        let special = SpecialNames {
            bos: config.bos_token.map(Token::into_text),
            eos: config.eos_token.map(Token::into_text),
            unk: config.unk_token.map(Token::into_text),
            pad: config.pad_token.map(Token::into_text),
        };
        let broken = |error: minijinja::Error| {
            checkpoint_error(folder, format!("its chat template can't be used ({error:#}); correct it"))
        };
        let chat = Self { environment: environment(template).map_err(broken)?, special };
        chat.try_render("").map_err(broken)?;
        Ok(chat)
    }

    /// The model's whole prompt for one message of a user, up to where the answer begins.
    pub(super) fn render(&self, message: &str) -> Result<String> {
        self.try_render(message)
            .map_err(|error| Error::Input(format!("the model's chat template refuses the prompt: {error:#}")))
    }

    /// The text of the token with which the model ends its turn.
    pub(super) fn end_token(&self) -> Option<&str> {
        self.special.eos.as_deref()
    }

    fn try_render(&self, message: &str) -> std::result::Result<String, minijinja::Error> {
        self.environment.get_template(NAME)?.render(context! {
            messages => [context! { role => "user", content => message }],
            add_generation_prompt => true,
            enable_thinking => false,
            bos_token => self.special.bos,
            eos_token => self.special.eos,
            unk_token => self.special.unk,
            pad_token => self.special.pad,
        })
    }
}

/// An environment like transformers': its white space, Python's methods on strings and lists, `raise_exception`. The
/// date is left undefined, so that the same inputs give the same prompt tomorrow.
fn environment(template: String) -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| {
        Err::<Value, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    // minijinja has no slices with a negative step.
    environment.add_template_owned(NAME, template.replace("[::-1]", "|reverse"))?;
    Ok(environment)
}
