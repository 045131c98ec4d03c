//! The tables: means, significance against the baseline, averages.

use super::CompareOptions;
use super::grid::{Grid, Member, Row};
use super::report::{Cell, Compared, Mark, Table, TableRow};
use crate::significance::{Comparison, Stratum, compare_strata, holm};
use crate::{Error, Metric, Result};

/// The values of one system on the common queries of one collection; none where it has no run.
pub(super) fn values(member: &Member, system: usize, metric: Metric) -> Result<Option<Vec<f64>>> {
    let Some(run) = member.run(system) else { return Ok(None) };
    let Some(column) = run.scores.metrics.iter().position(|candidate| *candidate == metric) else {
        return Err(Error::Input(format!(
            "{}: {metric} is not in its metrics.json; name another metric, or the folder of the collections (--collections), \
             so that it can be computed from run.trec",
            run.path.display()
        )));
    };
    let values = member.queries.iter().filter_map(|query| run.scores.per_query.get(query));
    Ok(Some(values.map(|values| values[column]).collect()))
}

/// One metric over all rows.
pub(super) fn table(grid: &Grid, baseline: usize, metric: Metric, options: &CompareOptions) -> Result<Table> {
    let mut rows = Vec::new();
    let mut whole_rows = Vec::new();
    for row in &grid.rows {
        let columns = columns(grid, row, metric)?;
        if columns.iter().all(Option::is_some) {
            whole_rows.push(row);
        }
        rows.push(table_row(grid, &row.name, &[row], columns, baseline, options)?);
    }
    let average = if whole_rows.len() < 2 {
        None
    } else {
        let mut columns: Vec<Option<Column>> = vec![Some(Vec::new()); grid.systems.len()];
        for row in &whole_rows {
            for (all, part) in columns.iter_mut().zip(self::columns(grid, row, metric)?) {
                let share = 1.0 / whole_rows.len() as f64;
                let part = part.unwrap_or_default().into_iter();
                let part = part.map(|(values, weight)| (values, weight * share));
                all.get_or_insert_default().extend(part);
            }
        }
        let mut average = table_row(grid, "average", &whole_rows, columns, baseline, options)?;
        average.collections = whole_rows.iter().map(|row| row.name.clone()).collect();
        Some(average)
    };
    Ok(Table { metric: metric.to_string(), rows, average })
}

/// The values of one system: by member of a row, with the member's weight in the row's mean.
type Column = Vec<(Vec<f64>, f64)>;

/// A column a system. A system that lacks a member of a group has no figure for the group.
fn columns(grid: &Grid, row: &Row, metric: Metric) -> Result<Vec<Option<Column>>> {
    let weight = 1.0 / row.members.len() as f64;
    let mut columns = Vec::new();
    for system in 0..grid.systems.len() {
        let mut column = Some(Vec::new());
        for member in &row.members {
            match (values(member, system, metric)?, &mut column) {
                (Some(values), Some(column)) => column.push((values, weight)),
                _ => column = None,
            }
        }
        columns.push(column);
    }
    Ok(columns)
}

fn table_row(
    grid: &Grid,
    name: &str,
    rows: &[&Row],
    columns: Vec<Option<Column>>,
    baseline: usize,
    options: &CompareOptions,
) -> Result<TableRow> {
    let members: Vec<&Member> = rows.iter().flat_map(|row| &row.members).collect();
    let comparisons = compared(&columns, baseline, options)?;
    let mut cells = Vec::new();
    for (system, (column, comparison)) in columns.iter().zip(comparisons).enumerate() {
        let degraded = members.iter().filter_map(|member| member.run(system));
        cells.push(Cell {
            system: grid.systems[system].clone(),
            mean: column.as_ref().map(weighted_mean),
            best: false,
            degraded: column.is_some() && degraded.into_iter().any(|run| run.degraded_queries() > 0),
            mark: comparison.as_ref().map_or(Mark::None, |comparison| mark(comparison, options.alpha)),
            comparison,
        });
    }
    let printed = |mean: f64| (mean * 1e4).round();
    let best = cells.iter().filter_map(|cell| cell.mean).map(printed).fold(f64::NEG_INFINITY, f64::max);
    for cell in &mut cells {
        cell.best = cell.mean.is_some_and(|mean| printed(mean) >= best);
    }
    Ok(TableRow {
        name: name.to_owned(),
        collections: members.iter().map(|member| member.collection.clone()).collect(),
        queries: members.iter().map(|member| member.queries.len()).sum(),
        cells,
    })
}

/// Each system against the baseline, Holm's correction over the systems of this row.
fn compared(
    columns: &[Option<Column>],
    baseline: usize,
    options: &CompareOptions,
) -> Result<Vec<Option<Compared>>> {
    let mut comparisons: Vec<Option<Comparison>> = Vec::new();
    for (system, column) in columns.iter().enumerate() {
        comparisons.push(match (column, &columns[baseline]) {
            (Some(column), Some(base)) if system != baseline => {
                let strata: Vec<Stratum> = column
                    .iter()
                    .zip(base)
                    .map(|((first, weight), (second, _))| Stratum {
                        first: first.clone(),
                        second: second.clone(),
                        weight: *weight,
                    })
                    .collect();
                Some(compare_strata(&strata, &options.significance)?)
            }
            _ => None,
        });
    }
    let p_values: Vec<f64> = comparisons.iter().flatten().map(|comparison| comparison.p_value).collect();
    let mut corrected = holm(&p_values).into_iter();
    let with_correction = |comparison: Option<Comparison>| {
        let comparison = comparison?;
        Some(Compared { comparison, p_holm: corrected.next()? })
    };
    Ok(comparisons.into_iter().map(with_correction).collect())
}

fn mark(compared: &Compared, alpha: f64) -> Mark {
    if compared.p_holm >= alpha {
        Mark::None
    } else if compared.comparison.difference > 0.0 {
        Mark::Better
    } else {
        Mark::Worse
    }
}

fn weighted_mean(column: &Column) -> f64 {
    let total: f64 = column.iter().map(|(_, weight)| weight).sum();
    let mut mean = 0.0;
    for (values, weight) in column {
        mean += weight * values.iter().sum::<f64>() / values.len() as f64;
    }
    mean / total
}
