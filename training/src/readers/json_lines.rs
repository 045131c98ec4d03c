//! JSON lines into structures, with errors that name file and line.

use std::path::Path;

use expandr_evaluation::lines::Lines;
use serde::de::DeserializeOwned;

use super::{Intake, elements::Elements};
use crate::Result;

/// Parses each line that is not blank and hands it on; lines that are not a `T` are broken.
pub(super) fn for_each_line<T: DeserializeOwned>(
    path: &Path,
    wanted: &str,
    intake: &mut Intake<'_>,
    mut each: impl FnMut(T, usize, &mut Intake<'_>) -> Result<()>,
) -> Result<()> {
    let mut lines = Lines::open(path)?;
    while let Some((number, line)) = lines.next_line()? {
        match object(line.as_bytes()) {
            Ok(value) => each(value, number, intake)?,
            Err(error) => intake.broken(path, number, &format!("{error}; want {wanted}"))?,
        }
    }
    Ok(())
}

/// Parses each element of a file's array (its member `member`, or the file itself) and hands it on.
pub(super) fn for_each_element<T: DeserializeOwned>(
    path: &Path,
    member: Option<&str>,
    wanted: &str,
    intake: &mut Intake<'_>,
    mut each: impl FnMut(T, usize, &mut Intake<'_>) -> Result<()>,
) -> Result<()> {
    let mut elements = Elements::open(path, member)?;
    while let Some(element) = elements.next()? {
        let line = element.line;
        match object(element.json) {
            Ok(value) => each(value, line, intake)?,
            Err(error) => {
                let detail = format!("the entry that starts here is {error}; want {wanted}");
                intake.broken(path, line, &detail)?;
            }
        }
    }
    Ok(())
}

/// Parses an object; the error says what is wrong, without file and line.
pub(super) fn object<T: DeserializeOwned>(json: &[u8]) -> std::result::Result<T, String> {
    // Serde would also take an array for a struct, field by field.
    if !json.trim_ascii_start().starts_with(b"{") {
        return Err("not a JSON object".into());
    }
    serde_json::from_slice(json).map_err(|error| format!("not of the right form ({error})"))
}
