//! The report's plots as inline SVG, after the paper's Figures 2 to 5. Colours are chosen to be readable on light and dark
//! ground; text and axes take theirs from the page's style.

mod bars;
mod lines;
mod scatter;

use plotters::prelude::{RGBColor, ShapeStyle, TextStyle};
use plotters::style::{Color, IntoTextStyle};

use super::report::Report;
use super::words;
use crate::{Error, Result};

/// A drawn plot and what belongs beside it.
pub(super) struct Plot {
    /// What it shows, in a sentence.
    pub(super) caption: String,
    /// What each colour stands for, as `#rrggbb`.
    pub(super) legend: Vec<(String, String)>,
    /// The SVG element.
    pub(super) svg: String,
}

/// Series are told apart by these, in turn.
const PALETTE: [RGBColor; 12] = [
    RGBColor(0x3b, 0x82, 0xc4),
    RGBColor(0xe0, 0x8a, 0x1e),
    RGBColor(0x2f, 0xa3, 0x6b),
    RGBColor(0xc9, 0x57, 0x8f),
    RGBColor(0x8d, 0x6c, 0xc9),
    RGBColor(0xa8, 0x96, 0x2e),
    RGBColor(0x3f, 0xa9, 0xb5),
    RGBColor(0xd9, 0x60, 0x4c),
    RGBColor(0x7a, 0x8b, 0x99),
    RGBColor(0x8f, 0x6b, 0x4a),
    RGBColor(0x5f, 0xb8, 0x4d),
    RGBColor(0x5a, 0x62, 0xd6),
];

const GRID: RGBColor = RGBColor(0x80, 0x80, 0x80);

/// The change of every query, sorted, a plot a collection (Figure 4).
pub(super) fn changes(report: &Report) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    for collection in collections(report.changes.iter().map(|change| &change.collection)) {
        let of_collection = report.changes.iter().filter(|change| change.collection == collection);
        let series: Vec<lines::Series> = of_collection
            .map(|change| lines::Series {
                name: change.system.clone(),
                color: color(report, &change.system),
                points: steps(&change.differences),
            })
            .collect();
        let metric = report.changes.first().map(|change| words::metric(&change.metric)).unwrap_or_default();
        let axes = lines::Axes {
            x: "queries, from the largest gain to the largest loss (%)",
            y: &format!("change of {metric} (hundredths)"),
            zero_line: true,
        };
        let caption = format!(
            "{collection}: change of {metric} against {} by query, sorted (as Figure 4)",
            report.baseline
        );
        plots.push(lines::plot(caption, &axes, series)?);
    }
    Ok(plots)
}

/// Each query takes the same width.
fn steps(differences: &[f64]) -> Vec<(f64, f64)> {
    let width = 100.0 / differences.len().max(1) as f64;
    let mut points = Vec::with_capacity(differences.len() * 2);
    for (index, difference) in differences.iter().enumerate() {
        points.push((index as f64 * width, difference * 100.0));
        points.push(((index + 1) as f64 * width, difference * 100.0));
    }
    points
}

/// BLEU (Figure 3) and lengths (Figure 5).
pub(super) fn quality(report: &Report) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    let collections = collections(report.quality.iter().map(|quality| &quality.collection));
    for (reference, of) in [("gold passages", true), ("answers", false)] {
        let value = |collection: &str, system: &str| {
            let matching = |quality: &&super::QualityReport| {
                quality.collection == collection && quality.system == system
            };
            let quality = &report.quality.iter().find(matching)?.quality;
            let bleu = if of { quality.bleu_passages } else { quality.bleu_answers };
            bleu.map(|bleu| bleu.corpus)
        };
        let systems: Vec<&str> = report
            .systems
            .iter()
            .map(|system| system.name.as_str())
            .filter(|system| collections.iter().any(|collection| value(collection, system).is_some()))
            .collect();
        if systems.is_empty() {
            continue;
        }
        let groups = collections.iter().map(|collection| bars::Group {
            name: collection.clone(),
            bars: systems.iter().map(|system| (color(report, system), value(collection, system))).collect(),
        });
        let legend =
            systems.iter().map(|system| ((*system).to_owned(), hex(color(report, system)))).collect();
        let caption = format!("BLEU of expansions against {reference} (as Figure 3)");
        plots.push(bars::plot(caption, legend, &groups.collect::<Vec<_>>())?);
    }
    for collection in &collections {
        let of_collection = report.quality.iter().filter(|quality| quality.collection == *collection);
        let lengths: Vec<(&str, &[usize])> = of_collection
            .map(|quality| (quality.system.as_str(), quality.quality.lengths_in_words.as_slice()))
            .collect();
        let series = histogram(&lengths).into_iter().map(|(system, points)| lines::Series {
            name: system.to_owned(),
            color: color(report, system),
            points,
        });
        let axes = lines::Axes { x: "words an expansion", y: "expansions (%)", zero_line: false };
        let caption = format!("{collection}: lengths of expansions (as Figure 5)");
        plots.push(lines::plot(caption, &axes, series.collect())?);
    }
    Ok(plots)
}

/// Shares of lengths in bins of one round width for all systems, drawn as steps.
fn histogram<'a>(lengths: &[(&'a str, &[usize])]) -> Vec<(&'a str, Vec<(f64, f64)>)> {
    let longest = lengths.iter().flat_map(|(_, lengths)| lengths.iter()).copied().max().unwrap_or(0);
    let widths = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
    let width = widths.into_iter().find(|width| longest / width <= 30).unwrap_or(longest / 30 + 1);
    let bins = longest / width + 1;
    let mut all = Vec::new();
    for (system, lengths) in lengths {
        let mut counts = vec![0usize; bins];
        for length in *lengths {
            counts[length / width] += 1;
        }
        let mut points = vec![(0.0, 0.0)];
        for (bin, count) in counts.iter().enumerate() {
            let share = *count as f64 / lengths.len().max(1) as f64 * 100.0;
            points.push(((bin * width) as f64, share));
            points.push((((bin + 1) * width) as f64, share));
        }
        points.push(((bins * width) as f64, 0.0));
        all.push((*system, points));
    }
    all
}

/// Queries, expansions and gold documents in the plane (Figure 2).
pub(super) fn maps(report: &Report) -> Result<Vec<Plot>> {
    report.maps.iter().map(scatter::plot).collect()
}

/// Names in the order of their first appearance.
fn collections<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for name in names {
        if !distinct.contains(name) {
            distinct.push(name.clone());
        }
    }
    distinct
}

/// A system has the same colour in every plot.
fn color(report: &Report, system: &str) -> RGBColor {
    let index = report.systems.iter().position(|candidate| candidate.name == system).unwrap_or(0);
    PALETTE[index % PALETTE.len()]
}

fn hex(color: RGBColor) -> String {
    format!("#{:02x}{:02x}{:02x}", color.0, color.1, color.2)
}

fn line(color: RGBColor) -> ShapeStyle {
    color.stroke_width(2)
}

fn grid() -> ShapeStyle {
    GRID.mix(0.25).stroke_width(1)
}

fn label() -> TextStyle<'static> {
    ("sans-serif", 13).into_text_style(&(1, 1))
}

/// A tick's value without needless zeros.
fn short(value: &f64) -> String {
    let rounded = (value * 1000.0).round() / 1000.0 + 0.0; // -0 is 0
    rounded.to_string()
}

/// Inside a page the element needs no namespace.
fn inline(svg: String) -> String {
    svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "")
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Input(format!("a plot could not be drawn: {error}"))
}
