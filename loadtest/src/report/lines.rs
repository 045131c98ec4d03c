//! Lines with marks over two axes, as inline SVG. Text and axes take their colours from the page's style.

use anyhow::{Result, anyhow};
use plotters::coord::combinators::BindKeyPoints;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::plan::short;

const SIZE: (u32, u32) = (620, 300);
const GRID: RGBColor = RGBColor(0x80, 0x80, 0x80);

/// Above this many points a line has no marks.
const MOST_MARKS: usize = 40;

/// A drawn plot and what belongs beside it.
pub(super) struct Plot {
    /// What it shows, in a sentence.
    pub(super) caption: String,
    /// What each colour stands for, as `#rrggbb`.
    pub(super) legend: Vec<(String, String)>,
    /// The SVG element.
    pub(super) svg: String,
}

/// One line.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) color: RGBColor,
    pub(super) points: Vec<(f64, f64)>,
}

/// What the axes say, and whether they go by factors.
#[derive(Clone, Copy)]
pub(super) struct Axes<'a> {
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    pub(super) log_x: bool,
    pub(super) log_y: bool,
    /// The least top of a y axis that begins at 0.
    pub(super) top: f64,
}

/// Draws `series`; none where there is no point to draw.
///
/// # Errors
///
/// When the drawing library refuses.
pub(super) fn plot(caption: String, axes: Axes<'_>, mut series: Vec<Series>) -> Result<Option<Plot>> {
    for one in &mut series {
        // A logarithm has no place for 0, nor a picture for what is no number.
        one.points.retain(|(x, y)| {
            x.is_finite() && y.is_finite() && (!axes.log_x || *x > 0.0) && (!axes.log_y || *y > 0.0)
        });
    }
    series.retain(|one| !one.points.is_empty());
    if series.is_empty() {
        return Ok(None);
    }
    let legend = series.iter().map(|one| (one.name.clone(), hex(one.color))).collect();
    let (x, y) = (span(&series, |point| point.0), span(&series, |point| point.1));
    let by_factors = |span| {
        let range = factors(span);
        range.clone().log_scale().with_key_points(ticks(&range))
    };
    let linear_x = if x.0 < x.1 { x.0..x.1 } else { (x.0 - 1.0)..(x.1 + 1.0) };
    let linear_y = 0.0..(y.1 * 1.05).max(axes.top);
    let mut svg = String::new();
    match (axes.log_x, axes.log_y) {
        (true, true) => draw(&mut svg, axes, by_factors(x), by_factors(y), &series)?,
        (true, false) => draw(&mut svg, axes, by_factors(x), linear_y, &series)?,
        (false, true) => draw(&mut svg, axes, linear_x, by_factors(y), &series)?,
        (false, false) => draw(&mut svg, axes, linear_x, linear_y, &series)?,
    }
    // Inside a page the element needs no namespace.
    Ok(Some(Plot { caption, legend, svg: svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "") }))
}

fn draw<X, Y>(svg: &mut String, axes: Axes<'_>, x: X, y: Y, series: &[Series]) -> Result<()>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .margin_right(24)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.mix(0.25).stroke_width(1))
        .label_style(("sans-serif", 13).into_text_style(&(1, 1)))
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .x_desc(axes.x)
        .y_desc(axes.y)
        .draw()
        .map_err(failed)?;
    for one in series {
        let line = LineSeries::new(one.points.iter().copied(), one.color.stroke_width(2));
        chart.draw_series(line).map_err(failed)?;
        if one.points.len() <= MOST_MARKS {
            let marks = one.points.iter().map(|point| Circle::new(*point, 3, one.color.filled()));
            chart.draw_series(marks).map_err(failed)?;
        }
    }
    area.present().map_err(failed)
}

fn span(series: &[Series], of: impl Fn(&(f64, f64)) -> f64) -> (f64, f64) {
    let values = series.iter().flat_map(|one| one.points.iter().map(&of));
    values.fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(value), most.max(value)))
}

/// A little more than a span, by factors.
fn factors((least, most): (f64, f64)) -> std::ops::Range<f64> {
    let room = if most > least { (most / least).powf(0.05).max(1.02) } else { 2.0 };
    least / room..most * room
}

/// 1, 2 and 5 times the powers of ten; the powers alone where these are too many.
fn ticks(range: &std::ops::Range<f64>) -> Vec<f64> {
    const MOST: usize = 9;
    let powers = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
    let of = |steps: &[f64]| -> Vec<f64> {
        let all = powers.clone().flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        all.filter(|tick| range.contains(tick)).collect()
    };
    let fine = of(&[1.0, 2.0, 5.0]);
    if fine.len() > MOST { of(&[1.0]) } else { fine }
}

fn hex(color: RGBColor) -> String {
    format!("#{:02x}{:02x}{:02x}", color.0, color.1, color.2)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("a plot could not be drawn: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(&(8.0..130.0)), [10.0, 20.0, 50.0, 100.0]);
        assert_eq!(ticks(&(0.05..20_000.0)), [0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0]);
    }

    #[test]
    fn what_a_logarithm_can_t_show_is_left_out() {
        let axes = Axes { x: "x", y: "y", log_x: true, log_y: true, top: 0.0 };
        let series = |points: &[(f64, f64)]| {
            vec![Series { name: "s".into(), color: RGBColor(1, 2, 3), points: points.to_vec() }]
        };
        assert!(plot("c".into(), axes, series(&[(0.0, 1.0), (1.0, f64::NAN)])).unwrap().is_none());
        let plot = plot("c".into(), axes, series(&[(1.0, 2.0), (10.0, 0.0), (3.0, 5.0)])).unwrap().unwrap();
        assert_eq!(plot.svg.matches("<circle").count(), 2);
        assert_eq!(plot.legend, [("s".to_owned(), "#010203".to_owned())]);
    }
}
