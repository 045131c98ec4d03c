//! Preference pairs in TRL's layout: what DPO learns from.

use serde::{Deserialize, Serialize};

use crate::recipe::Layout;

/// A line of preferences.jsonl: TRL's preference data set. Members that TRL doesn't know are ignored by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreferenceLine {
    /// What the language model is asked.
    pub prompt: Turn,
    /// The candidate with the highest reward.
    pub chosen: Turn,
    /// The candidate with the lowest reward.
    pub rejected: Turn,
    /// The query's id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// R of the chosen one (Eq. 11).
    #[serde(default)]
    pub score_chosen: f32,
    /// R of the rejected one.
    #[serde(default)]
    pub score_rejected: f32,
    /// Whether the model ended the chosen one itself; otherwise it was cut, and no end should be learnt there.
    #[serde(default = "yes")]
    pub chosen_complete: bool,
    /// The same of the rejected one.
    #[serde(default = "yes")]
    pub rejected_complete: bool,
}

fn yes() -> bool {
    true
}

/// A text, or a conversation of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Turn {
    /// TRL's standard format: no chat template is put around it.
    Text(String),
    /// TRL's conversational format: the model's chat template is put around it.
    Messages(Vec<Message>),
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Turn {
    /// What the user says.
    pub fn user(text: &str, layout: Layout) -> Self {
        Self::said("user", text, layout)
    }

    /// What the model says.
    pub fn assistant(text: &str, layout: Layout) -> Self {
        Self::said("assistant", text, layout)
    }

    fn said(role: &str, text: &str, layout: Layout) -> Self {
        match layout {
            Layout::Conversational => {
                Self::Messages(vec![Message { role: role.into(), content: text.into() }])
            }
            Layout::Plain => Self::Text(text.into()),
        }
    }

    /// The text itself; of a conversation its last message.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Messages(messages) => messages.last().map_or("", |message| message.content.as_str()),
        }
    }

    /// Whether a chat template belongs around it.
    pub fn is_conversational(&self) -> bool {
        matches!(self, Self::Messages(_))
    }
}

/// A line of the warm-up's examples: TRL's prompt-completion data set for supervised training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionLine {
    /// What the language model is asked.
    pub prompt: Turn,
    /// What it should write.
    pub completion: Turn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_are_those_of_trl() {
        let line = |layout| PreferenceLine {
            prompt: Turn::user("Q", layout),
            chosen: Turn::assistant("good", layout),
            rejected: Turn::assistant("bad", layout),
            id: String::new(),
            score_chosen: 2.0,
            score_rejected: 0.5,
            chosen_complete: true,
            rejected_complete: false,
        };
        let json = serde_json::to_string(&line(Layout::Conversational)).unwrap();
        let start = "{\"prompt\":[{\"role\":\"user\",\"content\":\"Q\"}],\"chosen\":[{\"role\":\"assistant\",\"content\":\"good\"}],";
        assert!(json.starts_with(start), "{json}");
        let json = serde_json::to_string(&line(Layout::Plain)).unwrap();
        assert!(json.starts_with("{\"prompt\":\"Q\",\"chosen\":\"good\",\"rejected\":\"bad\","), "{json}");
        assert_eq!(serde_json::from_str::<PreferenceLine>(&json).unwrap(), line(Layout::Plain));
    }

    #[test]
    fn what_trl_wrote_reads() {
        let json = r#"{"prompt":[{"role":"user","content":"Q"}],"chosen":[{"role":"assistant","content":"a"}],"rejected":"b","extra":1}"#;
        let line: PreferenceLine = serde_json::from_str(json).unwrap();
        assert_eq!((line.prompt.text(), line.chosen.text(), line.rejected.text()), ("Q", "a", "b"));
        assert!(
            line.prompt.is_conversational() && !line.rejected.is_conversational() && line.chosen_complete
        );
    }
}
