//! Bars in groups.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Plot, failed, grid, inline, label, short};
use crate::Result;

const HEIGHT: u32 = 300;

/// The bars of one collection, a system each; none where it has no value.
pub(super) struct Group {
    pub(super) name: String,
    pub(super) bars: Vec<(RGBColor, Option<f64>)>,
}

pub(super) fn plot(caption: String, legend: Vec<(String, String)>, groups: &[Group]) -> Result<Plot> {
    let mut svg = String::new();
    draw(&mut svg, groups)?;
    Ok(Plot { caption, legend, svg: inline(svg) })
}

fn draw(svg: &mut String, groups: &[Group]) -> Result<()> {
    let values = groups.iter().flat_map(|group| &group.bars).filter_map(|(_, value)| *value);
    let top = values.fold(0.0, f64::max).max(1.0) * 1.1;
    let width = (groups.len() as u32 * 150).clamp(300, 1100) + 80;
    let area = SVGBackend::with_string(svg, (width, HEIGHT)).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..groups.len() as f64, 0.0..top)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(grid())
        .disable_x_mesh()
        .x_labels(0)
        .label_style(label())
        .y_label_formatter(&short)
        .y_desc("BLEU")
        .draw()
        .map_err(failed)?;
    for (index, group) in groups.iter().enumerate() {
        let bar_width = 0.8 / group.bars.len().max(1) as f64;
        for (position, (color, value)) in group.bars.iter().enumerate() {
            let Some(value) = value else { continue };
            let left = index as f64 + 0.1 + position as f64 * bar_width;
            let corners = [(left, 0.0), (left + bar_width * 0.9, *value)];
            chart.draw_series([Rectangle::new(corners, color.filled())]).map_err(failed)?;
        }
        let (x, y) = chart.backend_coord(&(index as f64 + 0.5, 0.0));
        let style = label().pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new(group.name.as_str(), (x, y + 8), style)).map_err(failed)?;
    }
    area.present().map_err(failed)
}
