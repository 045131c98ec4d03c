//! The report for people: a table a metric, marks for what is significant, and the p-values below.

use std::fmt::Write;

use super::{Compared, Report, Row, values_of};

impl Report {
    /// The report for people, in Markdown.
    #[must_use]
    pub fn page(&self) -> String {
        page(self)
    }
}

fn page(report: &Report) -> String {
    let mut page = String::from("# Report\n");
    page.push_str(&runs(report));
    for metric in &report.metrics {
        let names: Vec<&str> = report
            .rows
            .first()
            .map(|row| row.collections.iter().map(|c| c.name.as_str()).collect())
            .unwrap_or_default();
        // Writing to a string can't fail.
        let _ = writeln!(page, "\n## {metric}\n\n| | {} | average |", names.join(" | "));
        let _ = writeln!(page, "|---|{}---|", "---|".repeat(names.len()));
        for row in &report.rows {
            let _ = write!(page, "| {} |", row.title);
            for scores in &row.collections {
                let value = scores.mean.get(metric).copied().unwrap_or_default();
                let _ =
                    write!(page, " {:.2}{} |", 100.0 * value, marks(report, row, metric, Some(&scores.name)));
            }
            let value = row.average.get(metric).copied().unwrap_or_default();
            let spread =
                deviation(row, metric).map_or_else(String::new, |by| format!(" ± {:.2}", 100.0 * by));
            let _ = writeln!(page, " {:.2}{spread}{} |", 100.0 * value, marks(report, row, metric, None));
        }
    }
    page.push_str(
        "\n† ◇: better than Query and than w/ Retriever Training at p < 0.05 (two-sided paired permutation test, not \
         corrected for the number of tests); ↓: worse than Query likewise. The average and its tests weigh every collection \
         alike, CQADupStack's forums together as one.\n",
    );
    for row in report.rows.iter().filter(|row| row.name == "auto") {
        let skipped = row.collections.iter().map(|scores| {
            let queries = report.metrics.first().map_or(0, |metric| values_of(scores, metric).len());
            let searches = queries * row.runs.len().max(1);
            format!("{} of {searches} on {}", scores.skipped, scores.name)
        });
        let _ = writeln!(page, "\nThe gate left unexpanded: {}.", skipped.collect::<Vec<_>>().join(", "));
    }
    for metric in report.metrics.iter().take(1) {
        let _ = writeln!(
            page,
            "\n## Differences in {metric}\n\n| | against | on | difference | p | wins, losses, ties |"
        );
        page.push_str("|---|---|---|---|---|---|\n");
        for compared in report.comparisons.iter().filter(|compared| compared.metric == *metric) {
            let found = &compared.comparison;
            let _ = writeln!(
                page,
                "| {} | {} | {} | {:+.2} | {:.4} | {}, {}, {} |",
                compared.first,
                compared.second,
                compared.collection.as_deref().unwrap_or("average"),
                100.0 * found.difference,
                found.p_value,
                found.wins,
                found.losses,
                found.ties
            );
        }
    }
    page
}

/// What the runs have otherwise, and what the figures are then.
fn runs(report: &Report) -> String {
    if report.runs.is_empty() {
        return String::new();
    }
    let runs: Vec<String> = report
        .runs
        .iter()
        .map(|settings| {
            let settings = settings.iter().map(|(name, value)| match value.is_null() {
                true => format!("`{name}` not set"),
                false => format!("`{name}` {value}"),
            });
            settings.collect::<Vec<_>>().join(", ")
        })
        .collect();
    let mut text = format!(
        "\nOf {} runs: {}. A query's figure is the mean over the runs, and the tests are of these means; ± is the standard \
         deviation of the runs' averages.\n",
        runs.len(),
        runs.join("; ")
    );
    if report.shared_trainings {
        text += "\nThe runs' encoders are means of trainings that they have in part in common, so ± is too small: take \
                 seeds that are `contrastive.soup` apart.\n";
    }
    if !report.left_out.is_empty() {
        let _ = writeln!(text, "\nNot in every run and left out: {}.", report.left_out.join(", "));
    }
    text
}

/// Of the runs' averages (n − 1); none of one run.
fn deviation(row: &Row, metric: &str) -> Option<f64> {
    let values: Vec<f64> = row.runs.iter().filter_map(|run| run.get(metric).copied()).collect();
    if values.len() < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

fn marks(report: &Report, row: &Row, metric: &str, collection: Option<&str>) -> &'static str {
    let of = |second: &str| {
        report.comparisons.iter().find(|compared| {
            compared.first == row.name
                && compared.second == second
                && compared.metric == metric
                && compared.collection.as_deref() == collection
        })
    };
    let significant = |compared: Option<&Compared>, sign: f64| {
        compared.is_some_and(|c| c.comparison.p_value < 0.05 && c.comparison.difference * sign > 0.0)
    };
    match (significant(of("query"), 1.0), significant(of("ft"), 1.0), significant(of("query"), -1.0)) {
        (true, true, _) => "†◇",
        (true, false, _) => "†",
        (false, true, false) => "◇",
        (false, _, true) => "↓",
        _ => "",
    }
}
