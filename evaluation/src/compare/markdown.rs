//! The report as Markdown.

use std::fmt::Write;

use super::report::{Cell, Change, Mark, QueryChange, Report, Table, TableRow};
use super::words::{self, hundredths, p_value, signed};
use crate::paper::PaperReport;

/// The whole report, without the plots.
pub fn markdown(report: &Report) -> String {
    let mut text = summary(report);
    if let Some(paper) = &report.paper {
        write_paper(&mut text, paper, report);
    }
    for change in &report.changes {
        write_change(&mut text, change, report);
    }
    let _ = writeln!(text, "## Statistics\n\n{}\n", plain(&words::statistics(report)));
    if !report.notes.is_empty() {
        text.push_str("## Notes\n\n");
        for note in &report.notes {
            let _ = writeln!(text, "- {}", plain(note));
        }
    }
    text
}

/// The report's warnings and tables, without the paper's and without single queries.
pub fn summary(report: &Report) -> String {
    let mut text = String::from("# Comparison of evaluation runs\n\n");
    for warning in &report.warnings {
        let _ = writeln!(text, "> **Warning:** {}\n>", plain(warning));
    }
    if !report.warnings.is_empty() {
        text.push('\n');
    }
    let _ = writeln!(text, "{}\n", plain(&words::legend(report)));
    for table in &report.tables {
        let _ = writeln!(text, "## {}\n", words::metric(&table.metric));
        write_table(&mut text, table, report);
    }
    write_tests(&mut text, report);
    write_quality(&mut text, report);
    write_maps(&mut text, report);
    text
}

/// Text on one line that can't end a table's cell or be taken for markup; what can't be taken for it stays as it is.
fn plain(text: &str) -> String {
    let line: Vec<char> = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().collect();
    let mut safe = String::with_capacity(line.len());
    for (index, character) in line.iter().enumerate() {
        let before = index.checked_sub(1).map(|index| line[index]);
        let after = line.get(index + 1);
        let within_word =
            before.is_some_and(char::is_alphanumeric) && after.is_some_and(|next| next.is_alphanumeric());
        let is_markup = match character {
            '|' | '\\' | '`' | '*' | '[' | ']' => true,
            '_' => !within_word,
            '<' => after.is_some_and(|next| next.is_alphabetic() || matches!(next, '/' | '!' | '?')),
            '&' => after.is_some_and(|next| next.is_alphabetic() || *next == '#'),
            _ => false,
        };
        if is_markup {
            safe.push('\\');
        }
        safe.push(*character);
    }
    safe
}

fn header(text: &mut String, columns: &[String]) {
    let _ = writeln!(text, "| {} |", columns.join(" | "));
    let mut rule = String::from("|---|");
    rule.push_str(&"---:|".repeat(columns.len().saturating_sub(1)));
    let _ = writeln!(text, "{rule}");
}

fn write_table(text: &mut String, table: &Table, report: &Report) {
    let mut columns = vec!["collection".to_owned()];
    for system in &report.systems {
        let baseline = if system.name == report.baseline { " (baseline)" } else { "" };
        columns.push(format!("{}{baseline}", plain(&system.name)));
    }
    header(text, &columns);
    for row in table.rows.iter().chain(&table.average) {
        let cells: Vec<String> = row.cells.iter().map(cell).collect();
        let _ = writeln!(text, "| {} | {} |", plain(&words::row_name(row)), cells.join(" | "));
    }
    text.push('\n');
}

fn cell(cell: &Cell) -> String {
    let Some(mean) = cell.mean else { return "–".into() };
    let figure = hundredths(mean);
    let figure = if cell.best { format!("**{figure}**") } else { figure };
    let degraded = if cell.degraded { words::DEGRADED } else { "" };
    format!("{figure}{}{degraded}", cell.mark.symbol())
}

fn write_tests(text: &mut String, report: &Report) {
    let _ = writeln!(text, "## Tests against {}\n", plain(&report.baseline));
    let columns = [
        "metric, collection",
        "system",
        "difference",
        "interval",
        "d",
        "p",
        "p (Holm)",
        "wins",
        "losses",
        "ties",
        "",
    ];
    header(text, &columns.map(str::to_owned));
    for table in &report.tables {
        for row in table.rows.iter().chain(&table.average) {
            write_test_rows(text, table, row);
        }
    }
    text.push('\n');
}

fn write_test_rows(text: &mut String, table: &Table, row: &TableRow) {
    for cell in &row.cells {
        let Some(compared) = &cell.comparison else { continue };
        let test = &compared.comparison;
        let _ = writeln!(
            text,
            "| {}, {} | {} | {} | {} to {} | {} | {} | {} | {} | {} | {} | {} |",
            words::metric(&table.metric),
            plain(&row.name),
            plain(&cell.system),
            signed(test.difference),
            signed(test.interval.0),
            signed(test.interval.1),
            test.effect_size.map_or("–".into(), |effect| format!("{effect:+.2}")),
            p_value(test.p_value),
            p_value(compared.p_holm),
            test.wins,
            test.losses,
            test.ties,
            match cell.mark {
                Mark::None => "",
                Mark::Better => "† better",
                Mark::Worse => "▼ worse",
            }
        );
    }
}

fn write_quality(text: &mut String, report: &Report) {
    if report.quality.is_empty() {
        return;
    }
    let _ = writeln!(text, "## Expansions\n\n{}\n", words::QUALITY);
    header(text, &words::QUALITY_COLUMNS.map(str::to_owned));
    for quality in &report.quality {
        let cells: Vec<String> = words::quality_cells(quality).iter().map(|cell| plain(cell)).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
}

fn write_maps(text: &mut String, report: &Report) {
    if report.maps.is_empty() {
        return;
    }
    let _ = writeln!(text, "## Vectors\n\n{}\n", words::MAPS);
    header(text, &words::MAP_COLUMNS.map(str::to_owned));
    for map in &report.maps {
        let cells: Vec<String> = words::map_cells(map).iter().map(|cell| plain(cell)).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
}

fn write_paper(text: &mut String, paper: &PaperReport, report: &Report) {
    let _ = writeln!(text, "## The paper's figures\n\n{}\n", words::PAPER);
    for matched in &paper.matches {
        let _ = writeln!(text, "- {}.", plain(&matched.describe()));
    }
    text.push('\n');
    for section in &paper.sections {
        let _ = writeln!(
            text,
            "### Table {}: {} ({})\n",
            section.number,
            section.title,
            words::metric(section.measure)
        );
        let mut columns = vec!["system".to_owned()];
        columns.extend(section.columns.iter().map(|column| plain(&words::paper_column(column))));
        header(text, &columns);
        for (name, cells) in words::paper_rows(section, report) {
            let _ = writeln!(text, "| {} | {} |", plain(&name), cells.join(" | "));
        }
        text.push('\n');
    }
}

fn write_change(text: &mut String, change: &Change, report: &Report) {
    let _ = writeln!(
        text,
        "## {}: {} against {}\n\n{}: wins {}, losses {}, ties {}.\n",
        plain(&change.collection),
        plain(&change.system),
        plain(&report.baseline),
        words::metric(&change.metric),
        change.wins,
        change.losses,
        change.ties
    );
    for (title, queries) in
        [("Largest losses", &change.largest_losses), ("Largest gains", &change.largest_gains)]
    {
        if queries.is_empty() {
            continue;
        }
        let _ = writeln!(text, "### {title}\n");
        for query in queries {
            write_query(text, query);
        }
        text.push('\n');
    }
}

fn write_query(text: &mut String, query: &QueryChange) {
    let _ = writeln!(
        text,
        "- **{}** ({}): {} → {} ({})",
        plain(&query.query),
        plain(&query.id),
        hundredths(query.baseline),
        hundredths(query.system),
        signed(query.difference)
    );
    for (name, content) in words::query_lines(query) {
        let _ = writeln!(text, "  - {name}: {}", plain(&content));
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn only_what_could_be_markup_is_escaped() {
        assert_eq!(plain("p < 0.05, nq_open, a & b"), "p < 0.05, nq_open, a & b");
        assert_eq!(plain("a|b\n_c_ <b> *d* &lt;"), "a\\|b \\_c\\_ \\<b> \\*d\\* \\&lt;");
    }
}
