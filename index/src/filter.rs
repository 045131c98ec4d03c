//! Conditions on metadata, as they come in a search request.
//!
//! ```json
//! {"and": [{"eq": {"crate": "serde"}}, {"range": {"year": {"gte": 2020, "lt": 2024}}}, {"not": {"in": {"tags": ["draft", 7]}}}]}
//! ```
//! A field is a dotted path into the metadata. Where it leads to an array, one element that satisfies the condition is
//! enough; where it leads nowhere, no condition holds (and `not` of it does). Numbers compare by value (1 equals 1.0),
//! strings by code points; a number never equals a string.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, ObjectBuilder, OneOfBuilder, Ref, RefOr, Schema, Type, schema::AdditionalProperties,
    },
};

use crate::error::shorten;
use crate::field_value::FieldValue;

/// Deepest nesting of operators.
pub const MAX_FILTER_DEPTH: usize = 16;
/// Most operators, fields and values together.
pub const MAX_FILTER_NODES: usize = 4096;
/// Longest field path and string value, in bytes.
pub const MAX_FILTER_STRING_BYTES: usize = 1024;

const OPERATORS: &str = "eq, in, range, and, or, not";

/// What is wrong with a filter, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} (at {})", if pointer.is_empty() { "its root" } else { pointer })]
pub struct FilterError {
    /// JSON pointer into the filter; empty = its root.
    pub pointer: String,
    /// What is wrong, and what would be right.
    pub detail: String,
}

/// A condition on a document's metadata; see the [module](self).
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// The field has this value: `{"eq": {"field": value}}`.
    Eq(String, FieldValue),
    /// The field has one of these values: `{"in": {"field": [value, …]}}`.
    In(String, Vec<FieldValue>),
    /// The field lies between bounds: `{"range": {"field": {"gte": low, "lt": high}}}`.
    Range(String, Bounds),
    /// All hold: `{"and": [filter, …]}`.
    And(Vec<Filter>),
    /// At least one holds: `{"or": [filter, …]}`.
    Or(Vec<Filter>),
    /// It does not hold: `{"not": filter}`.
    Not(Box<Filter>),
}

/// One end of a range.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    /// Its value.
    pub value: FieldValue,
    /// Whether the value itself is inside.
    pub inclusive: bool,
}

/// At least one end, of numbers or of strings.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    /// Lower end.
    pub low: Option<Bound>,
    /// Upper end.
    pub high: Option<Bound>,
}

impl Filter {
    /// Reads a filter from JSON.
    ///
    /// # Errors
    /// An unknown operator, an unusable value, or a limit broken; the error says where and what is allowed.
    pub fn from_json(value: &Value) -> Result<Self, FilterError> {
        Parser { nodes: 0 }.filter(value, "", 1)
    }

    /// The JSON that [`Filter::from_json`] reads back.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Eq(field, value) => json!({ "eq": { field: value.to_json() } }),
            Self::In(field, values) => {
                json!({ "in": { field: values.iter().map(FieldValue::to_json).collect::<Vec<_>>() } })
            }
            Self::Range(field, bounds) => {
                let end = |bound: &Option<Bound>, names: [&str; 2]| {
                    bound
                        .as_ref()
                        .map(|end| (names[usize::from(end.inclusive)].to_owned(), end.value.to_json()))
                };
                let ends: Map<_, _> = [end(&bounds.low, ["gt", "gte"]), end(&bounds.high, ["lt", "lte"])]
                    .into_iter()
                    .flatten()
                    .collect();
                json!({ "range": { field: ends } })
            }
            Self::And(parts) => json!({ "and": parts.iter().map(Self::to_json).collect::<Vec<_>>() }),
            Self::Or(parts) => json!({ "or": parts.iter().map(Self::to_json).collect::<Vec<_>>() }),
            Self::Not(part) => json!({ "not": part.to_json() }),
        }
    }
}

impl PartialSchema for Filter {
    fn schema() -> RefOr<Schema> {
        let itself = || RefOr::<Schema>::from(Ref::from_schema_name(Self::name()));
        let several = |items: RefOr<Schema>| ArrayBuilder::new().items(items).min_items(Some(1)).into();
        let of_field = |value: RefOr<Schema>| -> RefOr<Schema> {
            let one_field = ObjectBuilder::new().min_properties(Some(1)).max_properties(Some(1));
            one_field.additional_properties(Some(AdditionalProperties::RefOr(value))).into()
        };
        let operator = |name: &str, operand: RefOr<Schema>| {
            let object = ObjectBuilder::new().property(name, operand).required(name);
            object.additional_properties(Some(AdditionalProperties::FreeForm(false)))
        };
        OneOfBuilder::new()
            .item(operator("eq", of_field(scalar(true))))
            .item(operator("in", of_field(several(scalar(true)))))
            .item(operator("range", of_field(range())))
            .item(operator("and", several(itself())))
            .item(operator("or", several(itself())))
            .item(operator("not", itself()))
            .description(Some(
                "A condition on metadata. A field is a dotted path; of an array one element has to satisfy it.",
            ))
            .into()
    }
}

impl ToSchema for Filter {}

fn scalar(with_booleans: bool) -> RefOr<Schema> {
    let text = ObjectBuilder::new().schema_type(Type::String).max_length(Some(MAX_FILTER_STRING_BYTES));
    let scalars = OneOfBuilder::new().item(text).item(ObjectBuilder::new().schema_type(Type::Number));
    if with_booleans {
        return scalars.item(ObjectBuilder::new().schema_type(Type::Boolean)).into();
    }
    scalars.into()
}

fn range() -> RefOr<Schema> {
    let bounds = ["gte", "gt", "lte", "lt"];
    let object =
        bounds.into_iter().fold(ObjectBuilder::new(), |object, name| object.property(name, scalar(false)));
    object
        .min_properties(Some(1))
        .max_properties(Some(2))
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        .description(Some("At most one bound on each side, both numbers or both strings."))
        .into()
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(&Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

fn error<T>(pointer: &str, detail: impl Into<String>) -> Result<T, FilterError> {
    Err(FilterError { pointer: pointer.to_owned(), detail: detail.into() })
}

/// Appends to a JSON pointer (RFC 6901).
fn join(pointer: &str, token: &str) -> String {
    format!("{pointer}/{}", shorten(token).replace('~', "~0").replace('/', "~1"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

struct Parser {
    nodes: usize,
}

impl Parser {
    fn count(&mut self, pointer: &str) -> Result<(), FilterError> {
        self.nodes += 1;
        if self.nodes > MAX_FILTER_NODES {
            return error(
                pointer,
                format!("the filter has more than {MAX_FILTER_NODES} operators and values; simplify it"),
            );
        }
        Ok(())
    }

    fn filter(&mut self, value: &Value, at: &str, depth: usize) -> Result<Filter, FilterError> {
        self.count(at)?;
        if depth > MAX_FILTER_DEPTH {
            return error(
                at,
                format!("the filter is nested deeper than {MAX_FILTER_DEPTH} operators; flatten it"),
            );
        }
        let (operator, operand) = only(value, at, || format!("an operator: one of {OPERATORS}"))?;
        let inside = join(at, operator);
        match operator {
            "eq" => {
                let (field, value) = self.field(operand, &inside)?;
                Ok(Filter::Eq(field.clone(), self.scalar(value, &join(&inside, &field))?))
            }
            "in" => {
                let (field, value) = self.field(operand, &inside)?;
                let inside = join(&inside, &field);
                let values = list(value, &inside, "values")?;
                let values = values
                    .iter()
                    .enumerate()
                    .map(|(i, value)| self.scalar(value, &join(&inside, &i.to_string())));
                Ok(Filter::In(field, values.collect::<Result<_, _>>()?))
            }
            "range" => {
                let (field, value) = self.field(operand, &inside)?;
                let bounds = self.bounds(value, &join(&inside, &field))?;
                Ok(Filter::Range(field, bounds))
            }
            "and" | "or" => {
                let parts = list(operand, &inside, "filters")?;
                let parts = parts
                    .iter()
                    .enumerate()
                    .map(|(i, part)| self.filter(part, &join(&inside, &i.to_string()), depth + 1));
                let parts = parts.collect::<Result<_, _>>()?;
                Ok(if operator == "and" { Filter::And(parts) } else { Filter::Or(parts) })
            }
            "not" => Ok(Filter::Not(Box::new(self.filter(operand, &inside, depth + 1)?))),
            unknown => error(at, format!("unknown operator {:?}; allowed are {OPERATORS}", shorten(unknown))),
        }
    }

    fn field<'v>(&mut self, value: &'v Value, at: &str) -> Result<(String, &'v Value), FilterError> {
        let (field, value) = only(value, at, || "a metadata field".into())?;
        if field.is_empty() || field.len() > MAX_FILTER_STRING_BYTES {
            return error(at, format!("a field's name has 1 to {MAX_FILTER_STRING_BYTES} bytes"));
        }
        Ok((field.to_owned(), value))
    }

    fn scalar(&mut self, value: &Value, at: &str) -> Result<FieldValue, FilterError> {
        self.count(at)?;
        if value.as_str().is_some_and(|text| text.len() > MAX_FILTER_STRING_BYTES) {
            return error(at, format!("a value has at most {MAX_FILTER_STRING_BYTES} bytes"));
        }
        match FieldValue::from_json(value) {
            Some(scalar) => Ok(scalar),
            None => error(at, format!("a string, a number or a boolean is needed here, not {}", kind(value))),
        }
    }

    fn bounds(&mut self, value: &Value, at: &str) -> Result<Bounds, FilterError> {
        const NEEDED: &str = "an object with gte or gt, lte or lt, or one of each side";
        let Some(ends) = value.as_object().filter(|ends| !ends.is_empty()) else {
            return error(at, format!("a range is {NEEDED}"));
        };
        let mut bounds = Bounds { low: None, high: None };
        for (name, value) in ends {
            let inside = join(at, name);
            let (end, inclusive) = match name.as_str() {
                "gte" => (&mut bounds.low, true),
                "gt" => (&mut bounds.low, false),
                "lte" => (&mut bounds.high, true),
                "lt" => (&mut bounds.high, false),
                unknown => {
                    return error(at, format!("unknown bound {:?}; a range is {NEEDED}", shorten(unknown)));
                }
            };
            let value = self.scalar(value, &inside)?;
            if matches!(value, FieldValue::Bool(_)) {
                return error(&inside, "a bound is a number or a string, not a boolean; use eq");
            }
            if end.replace(Bound { value, inclusive }).is_some() {
                return error(at, format!("two bounds on one side; a range is {NEEDED}"));
            }
        }
        if let (Some(low), Some(high)) = (&bounds.low, &bounds.high)
            && !low.value.is_comparable(&high.value)
        {
            return error(at, "one bound is a number and the other a string; both must be of one kind");
        }
        Ok(bounds)
    }
}

/// The one entry of an object.
fn only<'v>(
    value: &'v Value,
    at: &str,
    what: impl Fn() -> String,
) -> Result<(&'v str, &'v Value), FilterError> {
    match value.as_object().map(|object| (object.len(), object.iter().next())) {
        Some((1, Some((name, value)))) => Ok((name, value)),
        Some((count, _)) => {
            error(at, format!("an object with exactly one entry is needed here, {}; it has {count}", what()))
        }
        None => error(
            at,
            format!("an object with exactly one entry is needed here, {}; it is {}", what(), kind(value)),
        ),
    }
}

fn list<'v>(value: &'v Value, at: &str, what: &str) -> Result<&'v [Value], FilterError> {
    match value.as_array() {
        Some(items) if !items.is_empty() => Ok(items),
        Some(_) => error(at, format!("the list of {what} is empty; give at least one")),
        None => error(at, format!("a list of {what} is needed here, not {}", kind(value))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_survive_a_round_trip() {
        for text in [
            r#"{"eq":{"a":1}}"#,
            r#"{"eq":{"a.b":"x"}}"#,
            r#"{"in":{"a":[1,"x",true,-2.5]}}"#,
            r#"{"range":{"a":{"gt":1,"lte":2}}}"#,
            r#"{"range":{"a":{"gte":"b"}}}"#,
            r#"{"and":[{"or":[{"eq":{"a":false}}]},{"not":{"eq":{"b":18446744073709551615}}}]}"#,
        ] {
            let filter: Filter = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_value(&filter).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        }
    }

    #[test]
    fn errors_say_where_and_what_is_allowed() {
        let deep = (0..MAX_FILTER_DEPTH).fold(json!({"eq": {"a": 1}}), |inner, _| json!({ "not": inner }));
        let cases = [
            (json!({"equals": {"a": 1}}), "", OPERATORS),
            (json!(7), "", "a number"),
            (json!({}), "", "exactly one"),
            (json!({"eq": {"a": 1}, "in": {"a": [1]}}), "", "exactly one"),
            (json!({"eq": {"a": 1, "b": 2}}), "/eq", "exactly one"),
            (json!({"eq": {"a": null}}), "/eq/a", "not null"),
            (json!({"eq": {"a/~b": [1]}}), "/eq/a~1~0b", "not an array"),
            (json!({"in": {"a": []}}), "/in/a", "empty"),
            (json!({"in": {"a": [1, {}]}}), "/in/a/1", "not an object"),
            (json!({"and": [{"eq": {"a": 1}}, {"eg": {"a": 1}}]}), "/and/1", "unknown operator \"eg\""),
            (json!({"or": []}), "/or", "empty"),
            (json!({"range": {"a": {}}}), "/range/a", "gte"),
            (json!({"range": {"a": {"ge": 1}}}), "/range/a", "unknown bound \"ge\""),
            (json!({"range": {"a": {"gt": 1, "gte": 1}}}), "/range/a", "one side"),
            (json!({"range": {"a": {"gt": 1, "lt": "x"}}}), "/range/a", "one kind"),
            (json!({"range": {"a": {"gt": true}}}), "/range/a/gt", "boolean"),
            (json!({"in": {"a": vec![1; MAX_FILTER_NODES]}}), "/in/a/4095", "more than"),
            (json!({"eq": {"a": "x".repeat(MAX_FILTER_STRING_BYTES + 1)}}), "/eq/a", "bytes"),
        ];
        for (value, pointer, detail) in cases {
            let error = Filter::from_json(&value).unwrap_err();
            assert!(error.pointer == pointer && error.detail.contains(detail), "{error:?}");
        }
        assert!(Filter::from_json(&deep).unwrap_err().detail.contains("deeper"));
        Filter::from_json(&deep["not"]).unwrap();
    }
}
