//! Queries, expansions and gold documents in the plane: the paper's Figure 2, from vectors of `/embed`.

use bhtsne::tSNE;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::grid::{Grid, Member};
use super::report::{Map, MapPoint};
use super::sources::Source;
use super::{CompareOptions, RunFolder};
use crate::client::{Endpoint, embed};
use crate::{Error, Result};

/// Fewer queries make no map.
const LEAST_QUERIES: usize = 5;
/// Steps of the optimisation.
const EPOCHS: usize = 1000;
/// The usual weight, where a run doesn't say.
const QUERY_WEIGHT: f64 = 0.5;

/// A map by collection and system with expansions. The queries of a collection are sampled once (seeded) from those that
/// have a gold document and an expansion of every such system.
pub(super) async fn maps(
    grid: &Grid,
    sources: &[Option<Source>],
    endpoint: &Endpoint,
    options: &CompareOptions,
    notes: &mut Vec<String>,
) -> Result<Vec<Map>> {
    let info = endpoint.info().await?;
    let encoder = info["bundle"]["encoder"]["id"].as_str();
    let mut maps = Vec::new();
    for (member, source) in super::members(grid).zip(sources) {
        let Some(source) = source else { continue };
        let mut runs: Vec<(&str, &RunFolder)> = Vec::new();
        for (system, name) in grid.systems.iter().enumerate() {
            let Some(run) = member.run(system).filter(|run| run.has_expansions()) else { continue };
            if run.encoder() == encoder {
                runs.push((name, run));
            } else {
                notes.push(format!(
                    "{}: no map of {name:?}: its encoder is {}, that of the endpoint {}",
                    member.collection,
                    run.encoder().unwrap_or("not named"),
                    encoder.unwrap_or("not named")
                ));
            }
        }
        let queries = sample(member, source, &runs, options);
        if runs.is_empty() {
            continue;
        }
        if queries.len() < LEAST_QUERIES {
            notes.push(format!(
                "{}: no map: only {} queries have an expansion and a gold document",
                member.collection,
                queries.len()
            ));
            continue;
        }
        let gold = queries.iter().filter_map(|query| source.gold_text(query)).collect::<Vec<String>>();
        let gold = embed(endpoint, &gold, "document").await?;
        let texts = queries.iter().map(|query| runs[0].1.expansions[*query].query.clone());
        let query_vectors = embed(endpoint, &texts.collect::<Vec<String>>(), "query").await?;
        for (name, run) in runs {
            let texts = queries.iter().map(|query| run.expansions[*query].texts[0].clone());
            let expansions = embed(endpoint, &texts.collect::<Vec<String>>(), "document").await?;
            let weight = run.expansions[queries[0]].query_weight.unwrap_or(QUERY_WEIGHT);
            let vectors = Vectors { queries: &query_vectors, expansions: &expansions, gold: &gold };
            maps.push(vectors.map(member, name, &queries, weight, options.significance.seed)?);
        }
    }
    Ok(maps)
}

fn sample<'a>(
    member: &'a Member,
    source: &Source,
    runs: &[(&str, &RunFolder)],
    options: &CompareOptions,
) -> Vec<&'a str> {
    let is_complete = |query: &&String| {
        let expanded = |(_, run): &(&str, &RunFolder)| {
            run.expansions.get(query.as_str()).is_some_and(|expansion| !expansion.texts.is_empty())
        };
        runs.iter().all(expanded) && source.gold_text(query).is_some()
    };
    let complete: Vec<&str> = member.queries.iter().filter(is_complete).map(String::as_str).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(options.significance.seed);
    let mut chosen: Vec<&str> = complete.choose_multiple(&mut rng, options.map_queries).copied().collect();
    chosen.sort_unstable();
    chosen
}

/// Of the same queries in the same order, normalised.
struct Vectors<'a> {
    queries: &'a [Vec<f32>],
    expansions: &'a [Vec<f32>],
    gold: &'a [Vec<f32>],
}

impl Vectors<'_> {
    fn map(&self, member: &Member, system: &str, ids: &[&str], weight: f64, seed: u64) -> Result<Map> {
        let averages: Vec<Vec<f32>> = self
            .queries
            .iter()
            .zip(self.expansions)
            .map(|(query, expansion)| {
                let pairs = query.iter().zip(expansion);
                pairs.map(|(q, e)| (weight * f64::from(*q) + (1.0 - weight) * f64::from(*e)) as f32).collect()
            })
            .collect();
        let all: Vec<&[f32]> =
            self.queries.iter().chain(self.expansions).chain(self.gold).map(Vec::as_slice).collect();
        let plane = plane(&all, seed)?;
        let count = ids.len();
        let points = ids.iter().enumerate().map(|(index, id)| MapPoint {
            id: (*id).to_owned(),
            query: plane[index],
            expansion: plane[count + index],
            gold: plane[2 * count + index],
        });
        Ok(Map {
            collection: member.collection.clone(),
            system: system.to_owned(),
            points: points.collect(),
            cosine_query_gold: mean_cosine(self.queries, self.gold),
            cosine_expansion_gold: mean_cosine(self.expansions, self.gold),
            cosine_average_gold: mean_cosine(&averages, self.gold),
            cosine_query_expansion: mean_cosine(self.queries, self.expansions),
        })
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

fn mean_cosine(first: &[Vec<f32>], second: &[Vec<f32>]) -> f64 {
    let sum: f64 = first.iter().zip(second).map(|(a, b)| cosine(a, b)).sum();
    sum / first.len().max(1) as f64
}

/// Exact t-SNE over 1 − cosine. The start is drawn from the seed and one thread does all sums, so the same vectors give the
/// same plane on the same machine; other machines may round otherwise and so fold it otherwise.
fn plane(vectors: &[&[f32]], seed: u64) -> Result<Vec<[f64; 2]>> {
    // The perplexity is what a third of the other points allows, at most the usual 30.
    let perplexity = ((vectors.len() - 1) as f64 / 3.0).min(30.0).floor();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let start: Vec<f64> = (0..vectors.len() * 2).map(|_| rng.random_range(-1e-4..1e-4)).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.map_err(|error| Error::Input(format!("no thread for the t-SNE map: {error}")))?;
    let embedding = pool.install(|| {
        let mut tsne: tSNE<'_, f64, &[f32]> = tSNE::new(vectors);
        tsne.perplexity(perplexity).epochs(EPOCHS).initial_embedding(start);
        tsne.exact(|a, b| 1.0 - cosine(a, b));
        tsne.embedding()
    });
    Ok(embedding.chunks_exact(2).map(|point| [point[0], point[1]]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_vectors_stay_near_and_the_seed_decides() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut vectors: Vec<Vec<f32>> = Vec::new();
        for index in 0..24 {
            let mut vector = vec![0.0; 8];
            vector[index % 4] = 1.0;
            vectors.push(vector.into_iter().map(|value| value + rng.random_range(-0.05..0.05)).collect());
        }
        let vectors: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
        let points = plane(&vectors, 7).unwrap();
        assert_eq!(points, plane(&vectors, 7).unwrap());
        assert_ne!(points, plane(&vectors, 8).unwrap());
        let mut same_cluster = 0;
        for (index, point) in points.iter().enumerate() {
            let distance = |other: &[f64; 2]| (other[0] - point[0]).hypot(other[1] - point[1]);
            let others = points.iter().enumerate().filter(|(other, _)| *other != index);
            let nearest = others.min_by(|a, b| distance(a.1).total_cmp(&distance(b.1))).unwrap().0;
            same_cluster += usize::from(nearest % 4 == index % 4);
        }
        assert!(same_cluster >= 22, "{same_cluster} of 24 have a neighbour of their own cluster");
    }
}
