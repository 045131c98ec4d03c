//! Queries, expansions and gold documents in the plane.

use plotters::prelude::*;

use super::{GRID, PALETTE, Plot, failed, hex, inline};
use crate::Result;
use crate::compare::report::{Map, MapPoint};

const SIZE: (u32, u32) = (620, 520);

pub(super) fn plot(map: &Map) -> Result<Plot> {
    let mut svg = String::new();
    draw(&mut svg, &map.points)?;
    let legend = ["query (triangle)", "expansion (cross)", "gold document (circle)"];
    let legend = legend.into_iter().zip(PALETTE).map(|(name, color)| (name.to_owned(), hex(color))).collect();
    let caption = format!(
        "{}, {}: t-SNE of {} queries, their expansions and gold documents (as Figure 2); a line joins what belongs to one query. \
         Mean cosine with the gold document: query {:.3}, expansion {:.3}, their average {:.3}",
        map.collection,
        map.system,
        map.points.len(),
        map.cosine_query_gold,
        map.cosine_expansion_gold,
        map.cosine_average_gold
    );
    Ok(Plot { caption, legend, svg: inline(svg) })
}

fn draw(svg: &mut String, points: &[MapPoint]) -> Result<()> {
    let all = || points.iter().flat_map(|point| [point.query, point.expansion, point.gold]);
    let range = |axis: usize| {
        let low = all().map(|point| point[axis]).fold(f64::INFINITY, f64::min);
        let high = all().map(|point| point[axis]).fold(f64::NEG_INFINITY, f64::max);
        let room = ((high - low) * 0.05).max(1e-9);
        low - room..high + room
    };
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart =
        ChartBuilder::on(&area).margin(8).build_cartesian_2d(range(0), range(1)).map_err(failed)?;
    let at = |point: [f64; 2]| (point[0], point[1]);
    for point in points {
        let path = [at(point.query), at(point.expansion), at(point.gold)];
        chart.draw_series([PathElement::new(path, GRID.mix(0.7).stroke_width(1))]).map_err(failed)?;
    }
    let [query, expansion, gold, ..] = PALETTE;
    for point in points {
        chart.draw_series([Circle::new(at(point.gold), 5, gold.filled())]).map_err(failed)?;
        chart.draw_series([Cross::new(at(point.expansion), 5, expansion.stroke_width(2))]).map_err(failed)?;
        chart.draw_series([TriangleMarker::new(at(point.query), 6, query.filled())]).map_err(failed)?;
    }
    area.present().map_err(failed)
}
