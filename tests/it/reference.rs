//! The configuration reference is made of the flags, and the committed one is the one that is made.

use std::process::Command;

use crate::process::BINARY;

const COMMITTED: &str = include_str!("../../docs/configuration.md");

/// The reference as the binary makes it, with `variable` set as an operator may have it.
fn made(variable: (&str, &str)) -> String {
    let output = Command::new(BINARY).arg("reference").env(variable.0, variable.1).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_configuration_reference_is_current() {
    let made = made(("EXPANDR_ADMIN_KEYS", "a-key-that-nobody-may-see"));
    let first = made.lines().zip(COMMITTED.lines()).find(|(made, committed)| made != committed);
    assert!(
        made == COMMITTED,
        "docs/configuration.md is not what the flags say (first difference, made and committed: {first:?}); rewrite it:\n  \
         cargo run --release -- reference > docs/configuration.md"
    );
}

#[test]
fn every_flag_of_the_service_has_a_variable_and_none_shows_its_value() {
    let made = made(("EXPANDR_ADMIN_KEYS", "a-key-that-nobody-may-see"));
    assert!(!made.contains("a-key-that-nobody-may-see"));
    let serve = made.split("\n## ").find(|section| section.starts_with("expandr serve\n")).unwrap();
    let rows: Vec<&str> = serve.lines().filter(|line| line.starts_with("| `--")).collect();
    assert!(rows.len() > 40, "{} flags", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").collect();
        assert!(cells[1].starts_with("`EXPANDR_"), "no environment variable: {row}");
        assert!(cells[3].len() > 10, "no meaning: {row}");
    }
}
