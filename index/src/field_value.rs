//! The values that metadata is compared by: booleans, numbers and strings, in a total order.

use std::cmp::Ordering;

use serde_json::Value;

/// A string, number or boolean from JSON. Values of one kind are ordered; kinds are kept apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum FieldValue {
    /// true or false.
    Bool(bool),
    /// Any JSON number.
    Number(Number),
    /// A string, ordered by code points.
    Text(Box<str>),
}

/// A JSON number. Integers up to 64 bits and floats compare by their mathematical value, without rounding: 1 equals
/// 1.0, and neighbouring integers above 2^53 stay apart.
#[derive(Debug, Clone, Copy)]
pub struct Number {
    /// Nearest double; decides unless two are equal. Finite, never -0.0.
    nearest: f64,
    /// The value itself where it is an integer below 2^100, else 0 (then no other number has the same double).
    integer: i128,
}

impl Number {
    fn from_json(number: &serde_json::Number) -> Option<Self> {
        if let Some(integer) = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)) {
            return Some(Self { nearest: integer as f64, integer });
        }
        let nearest = number.as_f64().filter(|value| value.is_finite())? + 0.0;
        let is_small_integer = nearest.fract() == 0.0 && nearest.abs() < 2f64.powi(100);
        Some(Self { nearest, integer: if is_small_integer { nearest as i128 } else { 0 } })
    }

    fn to_json(self) -> Value {
        if self.integer as f64 == self.nearest {
            if let Ok(integer) = i64::try_from(self.integer) {
                return integer.into();
            }
            if let Ok(integer) = u64::try_from(self.integer) {
                return integer.into();
            }
        }
        self.nearest.into()
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nearest.total_cmp(&other.nearest).then(self.integer.cmp(&other.integer))
    }
}
impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Number {}

impl FieldValue {
    /// The scalar that a JSON value is; `None` for null, arrays and objects.
    pub fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Number(number) => Number::from_json(number).map(Self::Number),
            Value::String(text) => Some(Self::Text(text.as_str().into())),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// The JSON value again.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Bool(value) => (*value).into(),
            Self::Number(number) => number.to_json(),
            Self::Text(text) => Value::String(text.to_string()),
        }
    }

    /// Whether both are of one kind.
    pub(crate) fn is_comparable(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(json: &str) -> FieldValue {
        FieldValue::from_json(&serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn numbers_compare_by_value() {
        for (left, right) in
            [("1", "1.0"), ("0", "-0.0"), ("9007199254740992", "9007199254740992.0"), ("1e2", "100")]
        {
            assert_eq!(scalar(left), scalar(right));
        }
        let ascending = [
            "-1e300",
            "-9223372036854775808",
            "-1.5",
            "-1",
            "0",
            "1e-300",
            "0.5",
            "9007199254740992",
            "9007199254740993",
            "18446744073709551614",
            "18446744073709551615",
            "18446744073709551616.0",
            "1e300",
        ];
        for pair in ascending.windows(2) {
            assert!(scalar(pair[0]) < scalar(pair[1]), "{pair:?}");
        }
        for text in ["1", "-7", "18446744073709551615", "0.5", "true", "\"x\"", "1e300"] {
            assert_eq!(scalar(&scalar(text).to_json().to_string()), scalar(text));
        }
    }

    #[test]
    fn kinds_are_kept_apart() {
        assert!(!scalar("1").is_comparable(&scalar("\"1\"")) && !scalar("1").is_comparable(&scalar("true")));
        for nothing in [Value::Null, Value::Array(vec![]), serde_json::json!({})] {
            assert_eq!(FieldValue::from_json(&nothing), None);
        }
    }
}
