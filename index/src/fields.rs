//! The inverted index over metadata: which slots have which values, in memory, rebuilt from the store when it opens.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Included, Unbounded};

use roaring::RoaringBitmap;
use serde_json::{Map, Value};

use crate::field_value::FieldValue;
use crate::filter::{Bounds, Filter};

/// Postings per dotted field path, by value in order, so that ranges are walks.
#[derive(Default)]
pub(crate) struct Fields {
    postings: HashMap<Box<str>, BTreeMap<FieldValue, RoaringBitmap>>,
}

impl Fields {
    pub(crate) fn insert(&mut self, slot: u32, metadata: &Map<String, Value>) {
        visit(metadata, &mut |path, value| {
            let values = match self.postings.get_mut(path) {
                Some(values) => values,
                None => self.postings.entry(path.into()).or_default(),
            };
            values.entry(value).or_default().insert(slot);
        });
    }

    /// `metadata` must be what the slot was inserted with.
    pub(crate) fn remove(&mut self, slot: u32, metadata: &Map<String, Value>) {
        visit(metadata, &mut |path, value| {
            let Some(values) = self.postings.get_mut(path) else { return };
            if let Some(slots) = values.get_mut(&value) {
                slots.remove(slot);
                if slots.is_empty() {
                    values.remove(&value);
                }
            }
            if values.is_empty() {
                self.postings.remove(path);
            }
        });
    }

    /// The slots among `live` that a filter selects.
    pub(crate) fn select(&self, filter: &Filter, live: &RoaringBitmap) -> RoaringBitmap {
        match filter {
            Filter::Eq(field, value) => self.equal(field, value).cloned().unwrap_or_default(),
            Filter::In(field, values) => union(values.iter().filter_map(|value| self.equal(field, value))),
            Filter::Range(field, bounds) => self.range(field, bounds),
            Filter::And(parts) => {
                // One after the other: a filter may have a thousand parts, and each may select most documents.
                let mut parts = parts.iter().map(|part| self.select(part, live));
                let Some(first) = parts.next() else { return live.clone() };
                parts.fold(first, |all, part| all & part)
            }
            Filter::Or(parts) => parts
                .iter()
                .map(|part| self.select(part, live))
                .fold(RoaringBitmap::new(), |any, part| any | part),
            Filter::Not(part) => live - self.select(part, live),
        }
    }

    fn equal(&self, field: &str, value: &FieldValue) -> Option<&RoaringBitmap> {
        self.postings.get(field)?.get(value)
    }

    fn range(&self, field: &str, bounds: &Bounds) -> RoaringBitmap {
        let Some(values) = self.postings.get(field) else { return RoaringBitmap::new() };
        let Some(sample) = bounds.low.as_ref().or(bounds.high.as_ref()).map(|bound| &bound.value) else {
            return RoaringBitmap::new();
        };
        let low = match &bounds.low {
            Some(bound) if bound.inclusive => Included(&bound.value),
            Some(bound) => Excluded(&bound.value),
            None => Unbounded,
        };
        let inside = |value: &FieldValue| match &bounds.high {
            Some(bound) if bound.inclusive => value <= &bound.value,
            Some(bound) => value < &bound.value,
            None => true,
        };
        // Kinds are contiguous in the order; without a lower bound the walk passes over smaller kinds.
        let walk = values
            .range::<FieldValue, _>((low, Unbounded))
            .skip_while(|(value, _)| !value.is_comparable(sample));
        union(
            walk.take_while(|(value, _)| value.is_comparable(sample) && inside(value))
                .map(|(_, slots)| slots),
        )
    }
}

fn union<'a>(sets: impl Iterator<Item = &'a RoaringBitmap>) -> RoaringBitmap {
    sets.fold(RoaringBitmap::new(), |union, set| union | set)
}

/// Calls `visit` with every (dotted path, scalar) of the metadata; arrays are transparent, nulls are nothing.
fn visit(metadata: &Map<String, Value>, visit: &mut impl FnMut(&str, FieldValue)) {
    fn walk(path: &mut String, value: &Value, visit: &mut impl FnMut(&str, FieldValue)) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| walk(path, item, visit)),
            Value::Object(fields) => walk_fields(path, fields, visit),
            _ => {
                if let Some(scalar) = FieldValue::from_json(value) {
                    visit(path, scalar);
                }
            }
        }
    }
    fn walk_fields(path: &mut String, fields: &Map<String, Value>, visit: &mut impl FnMut(&str, FieldValue)) {
        let length = path.len();
        for (name, value) in fields {
            if length > 0 {
                path.push('.');
            }
            path.push_str(name);
            walk(path, value, visit);
            path.truncate(length);
        }
    }
    walk_fields(&mut String::new(), metadata, visit);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Evaluates a filter on one document, straight from its definition.
    fn holds(filter: &Filter, metadata: &Value) -> bool {
        fn values<'v>(value: &'v Value, path: &[&str], found: &mut Vec<&'v Value>) {
            match (value, path) {
                (Value::Array(items), _) => items.iter().for_each(|item| values(item, path, found)),
                (Value::Object(fields), [first, rest @ ..]) => {
                    if let Some(value) = fields.get(*first) {
                        values(value, rest, found);
                    }
                }
                (Value::Object(_), []) | (_, [_, ..]) => {}
                (scalar, []) => found.push(scalar),
            }
        }
        let any = |field: &str, test: &dyn Fn(&Value) -> bool| {
            let mut found = Vec::new();
            values(metadata, &field.split('.').collect::<Vec<_>>(), &mut found);
            found.into_iter().any(test)
        };
        // Small integers and halves only, so doubles are exact.
        let equal = |left: &Value, right: &FieldValue| match (left, right.to_json()) {
            (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
            (left, right) => *left == right,
        };
        let order = |left: &Value, right: &FieldValue| match (left, right.to_json()) {
            (Value::Number(left), Value::Number(right)) => left.as_f64().partial_cmp(&right.as_f64()),
            (Value::String(left), Value::String(right)) => Some(left.cmp(&right)),
            _ => None,
        };
        match filter {
            Filter::Eq(field, value) => any(field, &|found| equal(found, value)),
            Filter::In(field, values) => any(field, &|found| values.iter().any(|value| equal(found, value))),
            Filter::Range(field, bounds) => any(field, &|found| {
                let low = bounds.low.as_ref().is_none_or(|low| {
                    order(found, &low.value)
                        .is_some_and(|order| order.is_gt() || low.inclusive && order.is_eq())
                });
                let high = bounds.high.as_ref().is_none_or(|high| {
                    order(found, &high.value)
                        .is_some_and(|order| order.is_lt() || high.inclusive && order.is_eq())
                });
                low && high
            }),
            Filter::And(parts) => parts.iter().all(|part| holds(part, metadata)),
            Filter::Or(parts) => parts.iter().any(|part| holds(part, metadata)),
            Filter::Not(part) => !holds(part, metadata),
        }
    }

    fn leaf() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<bool>().prop_map(Value::from),
            (-3i64..4).prop_map(Value::from),
            (-3i64..4).prop_map(|half| json!(half as f64 / 2.0)),
            prop::sample::select(vec!["", "a", "ab", "b", "é"]).prop_map(Value::from),
        ]
    }

    fn metadata() -> impl Strategy<Value = Value> {
        let value = leaf().prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map(prop::sample::select(vec!["x", "y"]), inner, 0..3)
                    .prop_map(|map| json!(map)),
                Just(Value::Null),
            ]
        });
        prop::collection::btree_map(prop::sample::select(vec!["x", "y", "z"]), value, 0..4)
            .prop_map(|map| json!(map))
    }

    fn filter() -> impl Strategy<Value = Value> {
        let field = || prop::sample::select(vec!["x", "y", "z", "x.x", "x.y", "y.x.y"]);
        let bound =
            |names: [&'static str; 2]| prop::option::of((prop::sample::select(names.to_vec()), -3i64..4));
        let text_bound = prop::sample::select(vec!["gte", "lt", "gt", "lte"]);
        let leaf = prop_oneof![
            (field(), leaf()).prop_map(|(field, value)| json!({"eq": {field: value}})),
            (field(), prop::collection::vec(leaf(), 1..4))
                .prop_map(|(field, values)| json!({"in": {field: values}})),
            (field(), text_bound, prop::sample::select(vec!["", "a", "b"]))
                .prop_map(|(field, bound, value)| json!({"range": {field: {bound: value}}})),
            (field(), bound(["gte", "gt"]), bound(["lte", "lt"])).prop_map(|(field, low, high)| {
                let ends: Map<_, _> =
                    [low, high].into_iter().flatten().map(|(name, v)| (name.to_owned(), v.into())).collect();
                if ends.is_empty() { json!({"eq": {field: 0}}) } else { json!({"range": {field: ends}}) }
            }),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..3).prop_map(|parts| json!({ "and": parts })),
                prop::collection::vec(inner.clone(), 1..3).prop_map(|parts| json!({ "or": parts })),
                inner.prop_map(|part| json!({ "not": part })),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn agrees_with_the_definition(
            documents in prop::collection::vec((metadata(), any::<bool>()), 0..20),
            filters in prop::collection::vec(filter(), 1..6),
        ) {
            let mut fields = Fields::default();
            for (slot, (document, _)) in documents.iter().enumerate() {
                fields.insert(slot as u32, document.as_object().unwrap());
            }
            let mut live: RoaringBitmap = (0..documents.len() as u32).collect();
            for (slot, (document, removed)) in documents.iter().enumerate() {
                if *removed {
                    fields.remove(slot as u32, document.as_object().unwrap());
                    live.remove(slot as u32);
                }
            }
            for filter in &filters {
                let filter = Filter::from_json(filter).unwrap();
                let selected: Vec<usize> = fields.select(&filter, &live).iter().map(|slot| slot as usize).collect();
                let expected: Vec<usize> = (0..documents.len())
                    .filter(|&slot| !documents[slot].1 && holds(&filter, &documents[slot].0)).collect();
                prop_assert_eq!(selected, expected, "{}", filter.to_json());
            }
            for (slot, (document, removed)) in documents.iter().enumerate() {
                if !*removed { fields.remove(slot as u32, document.as_object().unwrap()) }
            }
            prop_assert!(fields.postings.is_empty(), "removal leaves nothing behind");
        }
    }
}
