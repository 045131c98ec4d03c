//! Words and figures that Markdown and HTML share.

use super::report::{FirstDocument, GoldDocument, Map, QualityReport, QueryChange, Report, TableRow};
use crate::paper::{PaperColumn, PaperSection};

/// Behind a figure whose run has answers without the expansion that was asked for.
pub(super) const DEGRADED: &str = " ⚠";

/// A fraction as the paper prints it.
pub(super) fn hundredths(value: f64) -> String {
    format!("{:.2}", value * 100.0)
}

/// A difference of fractions, with its sign.
pub(super) fn signed(value: f64) -> String {
    let text = format!("{:+.2}", value * 100.0);
    if matches!(text.as_str(), "+0.00" | "-0.00") { "0.00".into() } else { text }
}

pub(super) fn p_value(value: f64) -> String {
    if value < 0.0001 { "< 0.0001".into() } else { format!("{value:.4}") }
}

/// A metric's name as it is printed in the literature.
pub(super) fn metric(name: &str) -> String {
    let (kind, cut) = name.split_once('@').map_or((name, None), |(kind, cut)| (kind, Some(cut)));
    let kind = match kind {
        "ndcg" => "nDCG",
        "recall" => "Recall",
        "mrr" => "MRR",
        "map" => "MAP",
        "p" => "P",
        "success" => "Success",
        other => other,
    };
    cut.map_or_else(|| kind.to_owned(), |cut| format!("{kind}@{cut}"))
}

pub(super) fn row_name(row: &TableRow) -> String {
    match row.collections.len() {
        count if row.name == "average" => format!("average of {count} collections"),
        1 => format!("{} ({} queries)", row.name, row.queries),
        count => format!("{} (mean of {count}, {} queries)", row.name, row.queries),
    }
}

pub(super) fn legend(report: &Report) -> String {
    let alpha = report.statistics.alpha;
    let mut text = format!(
        "Figures in hundredths. The best of a row is bold. † significantly better and ▼ significantly worse than {} \
         (paired two-sided permutation test, Holm's correction over the systems, p < {alpha}).",
        report.baseline
    );
    if report.degraded {
        text.push_str(" ⚠ some answers are without the expansion that was asked for.");
    }
    text
}

pub(super) fn statistics(report: &Report) -> String {
    let used = &report.statistics;
    format!(
        "Test: {}; {} random sign assignments (all of them where they are fewer, then p is exact), seed {}. Correction: {}. \
         Intervals: percentile bootstrap of the mean difference, {} samples, {} %. d: mean difference over the standard deviation of \
         the differences. Average: {}.",
        used.test,
        used.rounds,
        used.seed,
        used.correction,
        used.bootstrap_rounds,
        used.confidence * 100.0,
        used.average
    )
}

pub(super) const QUALITY: &str = "BLEU-4 (0 to 100, lower-cased, tokenisation 13a, exponential smoothing) of each expansion against \
    all gold passages of its query, and against its answers where the collection has some: over the corpus, and in brackets the \
    mean over expansions. Overlap@10: share of the ten best raw hits that are among the ten best expanded ones.";

pub(super) const QUALITY_COLUMNS: [&str; 9] = [
    "collection",
    "system",
    "expansions",
    "words (median)",
    "tokens",
    "BLEU gold",
    "BLEU answers",
    "cosine with query",
    "overlap@10",
];

pub(super) fn quality_cells(report: &QualityReport) -> [String; 9] {
    let none = || "–".to_owned();
    let quality = &report.quality;
    let bleu = |bleu: Option<crate::quality::Bleu>| {
        bleu.map_or_else(none, |bleu| format!("{:.2} ({:.2})", bleu.corpus, bleu.sentence_mean))
    };
    let overlap = report.raw_overlap_at_10.map(|overlap| match report.raw_overlap_source.as_deref() {
        Some("recorded") | None => format!("{overlap:.3}"),
        Some(raw) => format!("{overlap:.3} (run of {raw})"),
    });
    [
        report.collection.clone(),
        report.system.clone(),
        quality.expansions.to_string(),
        format!("{:.1} ({:.0})", quality.words.mean, quality.words.median),
        quality.tokens.map_or_else(none, |tokens| format!("{:.1}", tokens.mean)),
        bleu(quality.bleu_passages),
        bleu(quality.bleu_answers),
        quality.query_cosine.map_or_else(none, |cosine| format!("{:.3}", cosine.mean)),
        overlap.unwrap_or_else(none),
    ]
}

pub(super) const MAPS: &str = "Mean cosines in the encoder's space over the sampled queries; average: the vector that is searched with.";

pub(super) const MAP_COLUMNS: [&str; 7] = [
    "collection",
    "system",
    "queries",
    "query, gold",
    "expansion, gold",
    "average, gold",
    "query, expansion",
];

pub(super) fn map_cells(map: &Map) -> [String; 7] {
    let figure = |value: f64| format!("{value:.3}");
    [
        map.collection.clone(),
        map.system.clone(),
        map.points.len().to_string(),
        figure(map.cosine_query_gold),
        figure(map.cosine_expansion_gold),
        figure(map.cosine_average_gold),
        figure(map.cosine_query_expansion),
    ]
}

pub(super) const PAPER: &str = "As printed in the paper, for the datasets that collections of this report are named after. A name in \
    common does not make two collections the same:";

/// A dataset of the paper, and what of ours goes by its name.
pub(super) fn paper_column(column: &PaperColumn) -> String {
    match &column.collection {
        Some(collection) if column.same_size => format!("{} (ours: {collection})", column.dataset),
        Some(collection) => format!("{} (ours: {collection}, another collection)", column.dataset),
        None => column.dataset.clone(),
    }
}

/// Our systems first, where the table is of a metric of ours; then the paper's.
pub(super) fn paper_rows(section: &PaperSection, report: &Report) -> Vec<(String, Vec<String>)> {
    let mut rows = Vec::new();
    let ours = report.tables.iter().find(|table| table.metric == section.measure);
    if let Some(table) = ours.filter(|_| matches!(section.number, 2 | 6)) {
        for (system, name) in report.systems.iter().map(|system| &system.name).enumerate() {
            let mut cells = Vec::new();
            for column in &section.columns {
                let row = table.rows.iter().find(|row| Some(&row.name) == column.collection.as_ref());
                let mean = row.and_then(|row| row.cells[system].mean);
                cells.push(mean.map_or("–".to_owned(), hundredths));
            }
            rows.push((format!("ours: {name}"), cells));
        }
    }
    for row in &section.rows {
        let cells = row.printed.iter().map(|printed| printed.unwrap_or("–").to_owned());
        rows.push((row.system.clone(), cells.collect()));
    }
    rows
}

/// What explains one query's change: a name and its content, line by line.
pub(super) fn query_lines(query: &QueryChange) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if query.expansions.is_empty() {
        lines.push(("expansion", format!("none ({})", query.expansion_status)));
    }
    for expansion in &query.expansions {
        lines.push(("expansion", expansion.clone()));
    }
    if query.baseline_expansions != query.expansions {
        for expansion in &query.baseline_expansions {
            lines.push(("baseline's expansion", expansion.clone()));
        }
    }
    for document in &query.gold {
        lines.push(("gold", gold_line(document)));
    }
    lines.push(("baseline found", first_line(&query.baseline_first)));
    lines.push(("system found", first_line(&query.system_first)));
    lines
}

fn gold_line(document: &GoldDocument) -> String {
    let rank = |rank: Option<usize>| rank.map_or("not in the list".to_owned(), |rank| format!("rank {rank}"));
    format!(
        "{} ({}, grade {}): {} → {}",
        document.title.as_deref().unwrap_or("not in the corpus"),
        document.id,
        document.grade,
        rank(document.baseline_rank),
        rank(document.system_rank)
    )
}

fn first_line(documents: &[FirstDocument]) -> String {
    if documents.is_empty() {
        return "nothing".into();
    }
    let mut parts = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let label = match &document.title {
            Some(title) => format!("{title} ({})", document.id),
            None => document.id.clone(),
        };
        let relevant = if document.relevant == Some(true) { " ✓" } else { "" };
        parts.push(format!("{}. {label}{relevant}", index + 1));
    }
    parts.join("; ")
}
