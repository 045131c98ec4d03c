//! The test collections of a recipe.

use expandr_evaluation::Collection;

use crate::Result;
use crate::recipe::Recipe;
use crate::seed::draw;

/// Opens the evaluation's collections, with as many queries of each as the recipe wants.
pub(crate) fn open(recipe: &Recipe) -> Result<Vec<Collection>> {
    let mut collections = Vec::new();
    for settings in &recipe.evaluation.collections {
        collections.push(Collection::open(&recipe.data_path(&settings.path), settings.split.as_deref())?);
    }
    if let Some(limit) = recipe.evaluation.max_queries {
        for collection in &mut collections {
            let drawn = |id: &str| draw(recipe.seed, &["test query", &collection.name, id]);
            let mut draws: Vec<u64> = collection.queries.iter().map(|query| drawn(&query.id)).collect();
            draws.sort_unstable();
            if let Some(first_too_many) = draws.get(limit).copied() {
                let kept: Vec<bool> =
                    collection.queries.iter().map(|query| drawn(&query.id) < first_too_many).collect();
                let mut kept = kept.into_iter();
                collection.queries.retain(|_| kept.next().unwrap_or(false));
            }
        }
    }
    Ok(collections)
}
