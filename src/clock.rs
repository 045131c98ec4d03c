//! Points in time as they are written down: RFC 3339 in UTC, with milliseconds.

use chrono::{DateTime, NaiveDate, NaiveTime, SecondsFormat, SubsecRound, Utc};

/// Now, to the millisecond.
pub fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(3)
}

/// `2026-11-26T15:00:00.000Z`.
pub fn text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Reads RFC 3339 with any offset, or a date, which is its first moment in UTC.
///
/// # Errors
/// When the text is neither; the message says what to write.
pub fn parse(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.with_timezone(&Utc));
    }
    match text.parse::<NaiveDate>() {
        Ok(date) => Ok(date.and_time(NaiveTime::MIN).and_utc()),
        Err(_) => Err(format!("`{text}` is no time; write 2026-11-26 or 2026-11-26T15:00:00Z")),
    }
}

/// A time as serde reads and writes it: `#[serde(with = "crate::clock::rfc3339")]`.
pub mod rfc3339 {
    use chrono::{DateTime, Utc};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes [`super::text`].
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(at: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::text(*at))
    }

    /// Reads what [`super::parse`] reads.
    ///
    /// # Errors
    /// When the text is no time.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
        super::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_as_they_were_written() {
        let at = now();
        assert_eq!(parse(&text(at)), Ok(at));
        assert_eq!(text(parse("2026-11-26T16:00:00+01:00").unwrap()), "2026-11-26T15:00:00.000Z");
        assert_eq!(text(parse("2026-11-26").unwrap()), "2026-11-26T00:00:00.000Z");
        assert!(parse("yesterday").unwrap_err().contains("2026-11-26T15:00:00Z"));
    }
}
