//! `expandr reference`: the configuration reference, made of the flags themselves, so that it can't say anything else.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};

/// What stands above the flags.
const HEAD: &str = "\
# Configuration

Every flag of every command, with its environment variable. Made by `expandr reference > docs/configuration.md` from the
flags themselves; a test compares the two, so change a flag's documentation in the source and run that command again.

A flag goes before its environment variable, and that before the default. An unknown flag and a value that does not parse end
the command with code 2 before anything has happened. Environment variables that no flag knows are ignored. Lists are
separated by commas.
Keys (`*_KEY`, `*_KEYS`) belong in the environment rather than on the command line, where every process of the machine
can read them; they are never printed.

";

/// The whole reference, as Markdown.
pub(super) fn markdown(root: &Command) -> String {
    let mut out = HEAD.to_owned();
    out.push_str("## Every command\n\n");
    tables(&mut out, root);
    for command in shown(root) {
        section(&mut out, command, "expandr");
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// The subcommands that users see.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

fn section(out: &mut String, command: &Command, parents: &str) {
    let name = format!("{parents} {}", command.get_name());
    let level = if parents == "expandr" { "##" } else { "###" };
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    writeln!(out, "{level} {name}\n\n{}.\n", prose(&about).trim_end_matches('.'))
        .expect("a string takes all");
    if shown(command).next().is_some() && command.get_arguments().any(Arg::is_global_set) {
        out.push_str("These flags may stand before or after the subcommand.\n\n");
    }
    tables(out, command);
    for child in shown(command) {
        section(out, child, &name);
    }
}

/// The arguments of a command, a table a heading, in the order in which they are declared.
fn tables(out: &mut String, command: &Command) {
    let arguments: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
        .collect();
    let mut headings: Vec<Option<&str>> = Vec::new();
    for arg in &arguments {
        if !headings.contains(&arg.get_help_heading()) {
            headings.push(arg.get_help_heading());
        }
    }
    for heading in headings {
        if let Some(heading) = heading {
            writeln!(out, "**{heading}**\n").expect("a string takes all");
        }
        out.push_str("| flag | environment variable | default | meaning |\n|---|---|---|---|\n");
        for arg in arguments.iter().filter(|arg| arg.get_help_heading() == heading) {
            row(out, arg);
        }
        out.push('\n');
    }
}

fn row(out: &mut String, arg: &Arg) {
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let (mut meaning, stated) = split_default(&prose(&help));
    if takes_value {
        meaning.push_str(&values(arg));
    }
    let variable = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let default = match (takes_value, defaults.is_empty(), stated) {
        (true, false, _) => format!("`{}`", defaults.join(",")),
        (_, _, Some(stated)) => stated,
        (false, ..) => "off".to_owned(),
        (true, true, None) if arg.is_required_set() => "must be given".to_owned(),
        (true, true, None) => String::new(),
    };
    let cells = [spelling(arg, takes_value), variable, default, meaning].map(|cell| cell.replace('|', "\\|"));
    writeln!(out, "| {} |", cells.join(" | ")).expect("a string takes all");
}

/// How an argument is written: `-k, --top-k TOP_K`.
fn spelling(arg: &Arg, takes_value: bool) -> String {
    let values: Vec<&str> = arg.get_value_names().into_iter().flatten().map(|name| name.as_str()).collect();
    let value = values.join(" ");
    let mut names: Vec<String> = Vec::new();
    names.extend(arg.get_short().map(|short| format!("-{short}")));
    names.extend(arg.get_long().map(|long| format!("--{long}")));
    let repeated = matches!(arg.get_action(), ArgAction::Append) && arg.is_positional();
    match (names.is_empty(), takes_value) {
        (true, _) => format!("`{value}{}`", if repeated { " …" } else { "" }),
        (false, true) => format!("`{} {value}`", names.join(", ")),
        (false, false) => format!("`{}`", names.join(", ")),
    }
}

/// What may be given, where that is a list.
fn values(arg: &Arg) -> String {
    let possible: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| match value.get_help() {
            Some(help) => {
                format!("`{}` ({})", value.get_name(), prose(&help.to_string()).trim_end_matches('.'))
            }
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if possible.is_empty() { String::new() } else { format!(" One of {}.", possible.join(", ")) }
}

/// A documentation comment in one line, closed by a full stop.
fn prose(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('<', "&lt;");
    let closed = line.ends_with(['.', '?']) || line.ends_with(".)") || line.contains("[default: ");
    if !line.is_empty() && !closed {
        line.push('.');
    }
    line
}

/// Takes the `[default: …]` away that some documentation ends with.
fn split_default(text: &str) -> (String, Option<String>) {
    let Some((before, after)) = text.split_once("[default: ") else { return (text.to_owned(), None) };
    let stated = after.trim_end_matches('.').trim_end_matches(']').to_owned();
    (format!("{}.", before.trim_end().trim_end_matches('.')), Some(stated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_becomes_a_row() {
        let command = Command::new("expandr").subcommand(
            Command::new("serve").about("Serves").arg(
                Arg::new("ef")
                    .long("ef")
                    .value_name("EF")
                    .env("EXPANDR_EF")
                    .default_value("64")
                    .help("How | many"),
            ),
        );
        let text = markdown(&command);
        assert!(text.contains("## expandr serve\n\nServes.\n"), "{text}");
        assert!(text.contains("| `--ef EF` | `EXPANDR_EF` | `64` | How \\| many. |"), "{text}");
    }

    #[test]
    fn a_stated_default_has_its_own_column() {
        let (meaning, default) =
            split_default(&prose("Whether to expand [default: what the bundle says,\n else 0]"));
        assert_eq!(
            (meaning.as_str(), default.as_deref()),
            ("Whether to expand.", Some("what the bundle says, else 0"))
        );
    }
}
