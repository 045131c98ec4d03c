//! What of a request's arguments goes into the audit: bounded, and without secrets and users' queries.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Longest text that is kept whole, in bytes.
const TEXT_BYTES: usize = 300;
/// Most elements of a list, or members of an object, that are kept.
const ELEMENTS: usize = 50;
/// Largest arguments, written as JSON.
const ARGUMENT_BYTES: usize = 8 * 1024;
/// Deepest nesting that is kept.
const DEPTH: usize = 8;

/// Ends of the names of members whose values are never written down.
const SECRETS: [&str; 9] =
    ["key", "keys", "token", "secret", "secrets", "password", "passwords", "authorization", "credentials"];

/// `value` with long texts cut, secrets taken out, and a bound on the whole.
pub(super) fn bounded(value: &Value) -> Value {
    let bounded = shorten(value, DEPTH);
    let text = bounded.to_string();
    if text.len() <= ARGUMENT_BYTES {
        return bounded;
    }
    Value::String(cut(&text, ARGUMENT_BYTES / 2))
}

fn shorten(value: &Value, depth: usize) -> Value {
    match value {
        Value::String(text) => Value::String(cut(text, TEXT_BYTES)),
        Value::Array(_) | Value::Object(_) if depth == 0 => Value::String("…".to_owned()),
        Value::Array(values) => {
            let mut kept: Vec<Value> = values.iter().take(ELEMENTS).map(|v| shorten(v, depth - 1)).collect();
            if values.len() > ELEMENTS {
                kept.push(Value::String(format!("… ({} elements)", values.len())));
            }
            Value::Array(kept)
        }
        Value::Object(members) => {
            let mut kept = Map::new();
            for (name, value) in members.iter().take(ELEMENTS) {
                let value = if is_secret(name) {
                    Value::String("[secret]".to_owned())
                } else {
                    shorten(value, depth - 1)
                };
                kept.insert(cut(name, TEXT_BYTES), value);
            }
            if members.len() > ELEMENTS {
                kept.insert("…".to_owned(), Value::String(format!("{} members", members.len())));
            }
            Value::Object(kept)
        }
        other => other.clone(),
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRETS.iter().any(|secret| name.ends_with(secret))
}

/// The first `longest` bytes or a few less, and how long the whole is.
pub(super) fn cut(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    let mut end = longest;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}… ({} bytes)", &text[..end], text.len())
}

/// What stands for a user's text: enough to find out whether two were the same.
pub fn fingerprint(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    let digits: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("[sha256 {digits}]")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_taken_out_and_the_rest_stays() {
        let arguments = json!({"kind": "retrain", "overrides": {"machine.api_key": "abc", "dpo.epochs": 1}, "monkey_business": 2,
            "nested": [{"Authorization": "Bearer abc", "max_tokens": 3, "password": "abc"}]});
        let bounded = bounded(&arguments);
        assert!(!bounded.to_string().contains("abc"), "{bounded}");
        assert_eq!(
            (&bounded["overrides"]["dpo.epochs"], &bounded["monkey_business"]),
            (&json!(1), &json!(2))
        );
        assert_eq!(bounded["nested"][0]["max_tokens"], 3);
    }

    #[test]
    fn arguments_are_bounded() {
        let long = "ä".repeat(10_000);
        let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
        let wide: Vec<Value> = (0..10_000).map(|i| json!({"a": long, "i": i})).collect();
        for value in [json!(long), deep, json!(wide), json!({ "x": wide })] {
            let text = bounded(&value).to_string();
            assert!(text.len() <= 2 * ARGUMENT_BYTES, "{} bytes", text.len());
        }
        assert_eq!(bounded(&json!(long)).as_str().unwrap().chars().next_back(), Some(')'));
    }
}
