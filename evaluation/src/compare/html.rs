//! The report as one HTML page that needs nothing from outside: style and plots are in it.

use maud::{DOCTYPE, Markup, PreEscaped, html as markup};

use super::plots;
use super::report::{Cell, Change, Mark, QueryChange, Report, Table};
use super::words::{self, hundredths, p_value, signed};
use crate::Result;
use crate::paper::PaperReport;

/// The whole page. Texts are escaped; the page loads nothing and runs no script.
///
/// # Errors
/// When a plot can't be drawn.
pub fn html(report: &Report) -> Result<String> {
    let change_plots = plots::changes(report)?;
    let quality_plots = plots::quality(report)?;
    let map_plots = plots::maps(report)?;
    let page = markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Comparison of evaluation runs" }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                h1 { "Comparison of evaluation runs" }
                @if !report.warnings.is_empty() {
                    div.warnings role="alert" {
                        @for warning in &report.warnings { p { (warning) } }
                    }
                }
                p { (words::legend(report)) }
                @for table in &report.tables { (table_section(table, report)) }
                (tests(report))
                @if !change_plots.is_empty() {
                    h2 { "Change by query" }
                    @for plot in &change_plots { (figure(plot)) }
                }
                (quality(report, &quality_plots))
                @if !report.maps.is_empty() {
                    h2 { "Vectors" }
                    p.soft { (words::MAPS) }
                    (plain_table(&words::MAP_COLUMNS, report.maps.iter().map(words::map_cells)))
                    @for plot in &map_plots { (figure(plot)) }
                }
                @if let Some(paper) = &report.paper { (paper_section(paper, report)) }
                @if !report.changes.is_empty() {
                    h2 { "Queries that change most" }
                    @for change in &report.changes { (change_section(change, report)) }
                }
                h2 { "Statistics" }
                p { (words::statistics(report)) }
                (runs(report))
                @if !report.notes.is_empty() {
                    h2 { "Notes" }
                    ul { @for note in &report.notes { li { (note) } } }
                }
            }
        }
    };
    Ok(page.into_string())
}

fn figure(plot: &plots::Plot) -> Markup {
    markup! {
        figure {
            div role="img" aria-label=(plot.caption) { (PreEscaped(&plot.svg)) }
            figcaption {
                @for (name, color) in &plot.legend {
                    span.key { span.swatch style=(format!("background:{color}")) {} (name) }
                }
                br;
                (plot.caption)
            }
        }
    }
}

fn table_section(table: &Table, report: &Report) -> Markup {
    markup! {
        h2 { (words::metric(&table.metric)) }
        div.wide { table {
            thead { tr {
                th { "collection" }
                @for system in &report.systems {
                    th { (system.name) @if system.name == report.baseline { br; span.soft { "baseline" } } }
                }
            } }
            tbody {
                @for row in table.rows.iter().chain(&table.average) {
                    tr.average[row.name == "average"] {
                        td { (words::row_name(row)) }
                        @for cell in &row.cells { td { (figure_cell(cell)) } }
                    }
                }
            }
        } }
    }
}

fn figure_cell(cell: &Cell) -> Markup {
    markup! {
        @if let Some(mean) = cell.mean {
            @if cell.best { strong { (hundredths(mean)) } } @else { (hundredths(mean)) }
            @match cell.mark {
                Mark::None => {},
                Mark::Better => { span.better title="significantly better than the baseline" { "†" } },
                Mark::Worse => { span.worse title="significantly worse than the baseline" { "▼" } },
            }
            @if cell.degraded { span.worse title="some answers are without the expansion that was asked for" { (words::DEGRADED) } }
        } @else { "–" }
    }
}

fn tests(report: &Report) -> Markup {
    markup! {
        details {
            summary { "Tests against " (report.baseline) ": differences, intervals, p-values" }
            div.wide { table {
                thead { tr {
                    th.text { "metric, collection" } th.text { "system" } th { "difference" } th { "interval" } th { "d" } th { "p" }
                    th { "p (Holm)" } th { "wins" } th { "losses" } th { "ties" } th { "" }
                } }
                tbody {
                    @for table in &report.tables { @for row in table.rows.iter().chain(&table.average) { @for cell in &row.cells {
                        @if let Some(compared) = &cell.comparison {
                            @let test = &compared.comparison;
                            tr {
                                td.text { (words::metric(&table.metric)) ", " (row.name) }
                                td.text { (cell.system) }
                                td { (signed(test.difference)) }
                                td { (signed(test.interval.0)) " to " (signed(test.interval.1)) }
                                td { @match test.effect_size { Some(effect) => (format!("{effect:+.2}")), None => "–" } }
                                td { (p_value(test.p_value)) }
                                td { (p_value(compared.p_holm)) }
                                td { (test.wins) } td { (test.losses) } td { (test.ties) }
                                td { (cell.mark.symbol()) }
                            }
                        }
                    } } }
                }
            } }
        }
    }
}

fn plain_table<const N: usize>(columns: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> Markup {
    markup! {
        div.wide { table {
            thead { tr { @for column in columns { th { (column) } } } }
            tbody { @for row in rows { tr { @for cell in row { td { (cell) } } } } }
        } }
    }
}

fn quality(report: &Report, quality_plots: &[plots::Plot]) -> Markup {
    markup! {
        @if !report.quality.is_empty() {
            h2 { "Expansions" }
            p.soft { (words::QUALITY) }
            (plain_table(&words::QUALITY_COLUMNS, report.quality.iter().map(words::quality_cells)))
            @for plot in quality_plots { (figure(plot)) }
        }
    }
}

fn paper_section(paper: &PaperReport, report: &Report) -> Markup {
    markup! {
        h2 { "The paper's figures" }
        p { (words::PAPER) }
        ul { @for matched in &paper.matches { li { (matched.describe()) "." } } }
        @for section in &paper.sections {
            details open[matches!(section.number, 2 | 6)] {
                summary { "Table " (section.number) ": " (section.title) " (" (words::metric(section.measure)) ")" }
                div.wide { table {
                    thead { tr {
                        th { "system" }
                        @for column in &section.columns { th { (words::paper_column(column)) } }
                    } }
                    tbody {
                        @for (name, cells) in words::paper_rows(section, report) {
                            tr { td { (name) } @for cell in cells { td { (cell) } } }
                        }
                    }
                } }
            }
        }
    }
}

fn change_section(change: &Change, report: &Report) -> Markup {
    markup! {
        details {
            summary {
                (change.collection) ": " (change.system) " against " (report.baseline) ", "
                (words::metric(&change.metric)) ": wins " (change.wins) ", losses " (change.losses) ", ties " (change.ties)
            }
            @for (title, queries) in
                [("Largest losses", &change.largest_losses), ("Largest gains", &change.largest_gains)]
            {
                @if !queries.is_empty() {
                    h3 { (title) }
                    @for query in queries { (query_section(query)) }
                }
            }
        }
    }
}

fn query_section(query: &QueryChange) -> Markup {
    let class = if query.difference < 0.0 { "worse" } else { "better" };
    markup! {
        div.query {
            strong { (query.query) } " " span.soft { (query.id) } " "
            (hundredths(query.baseline)) " → " (hundredths(query.system)) " "
            span class=(class) { (signed(query.difference)) }
            dl { @for (name, content) in words::query_lines(query) { dt { (name) } dd { (content) } } }
        }
    }
}

fn runs(report: &Report) -> Markup {
    markup! {
        details {
            summary { "Runs" }
            div.wide { table {
                thead { tr {
                    th.text { "system" } th.text { "collection" } th { "queries" } th { "degraded" } th { "documents" } th.text { "bundle" }
                    th.text { "folder" } th.text { "search" }
                } }
                tbody {
                    @for system in &report.systems { @for run in &system.runs {
                        tr {
                            td.text { (system.name) } td.text { (run.collection) " (" (run.split) ")" } td { (run.queries) }
                            td { (run.degraded_queries) }
                            td { @match run.documents { Some(documents) => (documents), None => "–" } }
                            td.text { (run.bundle) } td.text { (run.folder) } td.text { code { (run.settings["search"]) } }
                        }
                    } }
                }
            } }
        }
    }
}
