//! The schemas of the types that operations name, collected as they are named, and put into the shape in which serde writes
//! and reads them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema},
};

const PREFIX: &str = "#/components/schemas/";

/// The schemas that were named so far.
#[derive(Default)]
pub(super) struct Schemas(BTreeMap<String, RefOr<Schema>>);

impl Schemas {
    /// A reference to the schema of `T`, which is kept with all that it names itself.
    pub(super) fn of<T: ToSchema>(&mut self) -> Value {
        let name = T::name().into_owned();
        if !self.0.contains_key(&name) {
            let mut further = Vec::new();
            T::schemas(&mut further);
            self.0.insert(name.clone(), T::schema());
            self.0.extend(further);
        }
        json!({ "$ref": format!("{PREFIX}{name}") })
    }

    /// All of them by name, without those that only `#[serde(flatten)]` named.
    pub(super) fn into_json(self, paths: &Value) -> serde_json::Result<Value> {
        let mut schemas = Map::new();
        for (name, schema) in self.0 {
            schemas.insert(name, serde_json::to_value(schema)?);
        }
        let known = schemas.clone();
        for schema in schemas.values_mut() {
            merge_flattened(schema, &known);
            tell_without_links(schema);
        }
        let used = used(paths, &schemas);
        schemas.retain(|name, _| used.contains(name));
        Ok(Value::Object(schemas))
    }
}

/// The names of the schemas that `paths` names, and that those name.
fn used(paths: &Value, schemas: &Map<String, Value>) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let mut waiting = Vec::new();
    named(paths, &mut waiting);
    waiting.push("Problem".to_owned());
    while let Some(name) = waiting.pop() {
        if let Some(schema) = schemas.get(&name)
            && used.insert(name)
        {
            named(schema, &mut waiting);
        }
    }
    used
}

fn named(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            if let Some(name) = members.get("$ref").and_then(name_of) {
                names.push(name);
            }
            members.values().for_each(|value| named(value, names));
        }
        Value::Array(items) => items.iter().for_each(|value| named(value, names)),
        _ => {}
    }
}

fn name_of(reference: &Value) -> Option<String> {
    reference.as_str()?.strip_prefix(PREFIX).map(str::to_owned)
}

/// utoipa writes a flattened member, and the tag of an enum, as `allOf`. Where a part refuses unknown members, it would refuse
/// those of the other parts; and a flattened `Option` is never null, its members are absent instead. So all are made one object.
fn merge_flattened(schema: &mut Value, known: &Map<String, Value>) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::Array(parts)) = members.get("allOf")
                && let Some(object) = merged(parts, known)
            {
                members.remove("allOf");
                for (name, value) in object {
                    members.entry(name).or_insert(value);
                }
            }
            members.values_mut().for_each(|value| merge_flattened(value, known));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| merge_flattened(value, known)),
        _ => {}
    }
}

/// One object with the members of all parts; none where a part is no object.
fn merged(parts: &[Value], known: &Map<String, Value>) -> Option<Map<String, Value>> {
    let (mut properties, mut required, mut is_strict) = (Map::new(), Vec::new(), false);
    for part in parts {
        let (part, is_optional) = resolved(part, known)?;
        if let Some(Value::Array(parts)) = part.get("allOf") {
            let inner = Value::Object(merged(parts, known)?);
            take(&inner, is_optional, &mut properties, &mut required);
            continue;
        }
        if part.get("type") != Some(&json!("object")) {
            return None;
        }
        is_strict |= part.get("additionalProperties") == Some(&Value::Bool(false));
        take(part, is_optional, &mut properties, &mut required);
    }
    let mut object = Map::new();
    object.insert("type".into(), "object".into());
    object.insert("properties".into(), properties.into());
    if !required.is_empty() {
        object.insert("required".into(), required.into());
    }
    if is_strict {
        object.insert("additionalProperties".into(), false.into());
    }
    Some(object)
}

fn take(part: &Value, is_optional: bool, properties: &mut Map<String, Value>, required: &mut Vec<Value>) {
    if let Some(members) = part.get("properties").and_then(Value::as_object) {
        properties.extend(members.clone());
    }
    if let (Some(names), false) = (part.get("required").and_then(Value::as_array), is_optional) {
        required.extend(names.iter().cloned());
    }
}

/// What a part stands for, and whether it may be left out.
fn resolved<'v>(part: &'v Value, known: &'v Map<String, Value>) -> Option<(&'v Value, bool)> {
    if let Some(name) = part.get("$ref").and_then(name_of) {
        return Some((known.get(&name)?, false));
    }
    let Some(choices) = part.get("oneOf").and_then(Value::as_array) else { return Some((part, false)) };
    match choices.as_slice() {
        [null, other] | [other, null] if null.get("type") == Some(&json!("null")) => {
            Some((resolved(other, known)?.0, true))
        }
        _ => None,
    }
}

/// Doc comments name Rust items as links (``[`Index`](crate::Index)``); who reads the schema wants the word alone.
fn tell_without_links(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    // A doc comment's lines are broken for its file.
                    Value::String(text) if name == "description" => {
                        *text = without_links(text).replace('\n', " ")
                    }
                    value => tell_without_links(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tell_without_links),
        _ => {}
    }
}

fn without_links(text: &str) -> String {
    let (mut told, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(start) = rest.find("[`") {
        let Some(length) = rest[start..].find("`]") else { break };
        let (before, word) = (&rest[..start], &rest[start + 1..start + length + 1]);
        told.push_str(before);
        told.push_str(word);
        rest = &rest[start + length + 2..];
        if rest.starts_with('(')
            && let Some(end) = rest.find(')')
        {
            rest = &rest[end + 1..];
        }
    }
    told.push_str(rest);
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_become_words() {
        let text = "one of [`Manifest::files`]; see [`weights`](crate::weights) and [this]";
        assert_eq!(without_links(text), "one of `Manifest::files`; see `weights` and [this]");
    }

    #[test]
    fn flattened_parts_become_one_object() {
        let known = json!({
            "Strict": {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": false},
            "Loose": {"type": "object", "properties": {"b": {}}, "required": ["b"]},
        });
        let known = known.as_object().unwrap();
        let reference = |name: &str| json!({ "$ref": format!("{PREFIX}{name}") });
        let own = json!({"type": "object", "properties": {"kind": {}}, "required": ["kind"]});
        let mut tagged = json!({"oneOf": [{"allOf": [reference("Strict"), own]}]});
        merge_flattened(&mut tagged, known);
        assert_eq!(
            tagged["oneOf"][0],
            json!({"type": "object", "properties": {"a": {}, "kind": {}}, "required": ["a", "kind"],
                   "additionalProperties": false})
        );
        let optional = json!({"oneOf": [{"type": "null"}, reference("Loose")]});
        let mut flattened = json!({"allOf": [optional, own], "description": "d"});
        merge_flattened(&mut flattened, known);
        assert_eq!(flattened["required"], json!(["kind"]), "{flattened}");
        assert_eq!(
            (flattened["properties"]["b"].is_object(), &flattened["description"]),
            (true, &json!("d"))
        );
    }
}
