//! Lines over two axes.

use plotters::prelude::*;

use super::{Plot, failed, grid, hex, inline, label, line, short};
use crate::Result;

const SIZE: (u32, u32) = (760, 320);

pub(super) struct Series {
    pub(super) name: String,
    pub(super) color: RGBColor,
    pub(super) points: Vec<(f64, f64)>,
}

pub(super) struct Axes<'a> {
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    /// Whether a line marks y = 0.
    pub(super) zero_line: bool,
}

pub(super) fn plot(caption: String, axes: &Axes<'_>, series: Vec<Series>) -> Result<Plot> {
    let legend = series.iter().map(|series| (series.name.clone(), hex(series.color))).collect();
    let mut svg = String::new();
    draw(&mut svg, axes, &series)?;
    Ok(Plot { caption, legend, svg: inline(svg) })
}

fn draw(svg: &mut String, axes: &Axes<'_>, series: &[Series]) -> Result<()> {
    let points = || series.iter().flat_map(|series| series.points.iter());
    let right = points().map(|point| point.0).fold(0.0, f64::max).max(1.0);
    let top = points().map(|point| point.1).fold(0.0, f64::max);
    let bottom = points().map(|point| point.1).fold(0.0, f64::min);
    let room = ((top - bottom) * 0.05).max(0.01);
    let bottom = if bottom < 0.0 { bottom - room } else { bottom };
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .margin_right(24)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..right, bottom..top + room)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(grid())
        .label_style(label())
        .x_label_formatter(&short)
        .y_label_formatter(&short)
        .x_desc(axes.x)
        .y_desc(axes.y)
        .draw()
        .map_err(failed)?;
    if axes.zero_line {
        let zero = [(0.0, 0.0), (right, 0.0)];
        chart.draw_series([PathElement::new(zero, BLACK.stroke_width(1))]).map_err(failed)?;
    }
    for series in series {
        let line = LineSeries::new(series.points.iter().copied(), line(series.color));
        chart.draw_series(line).map_err(failed)?;
    }
    area.present().map_err(failed)
}
