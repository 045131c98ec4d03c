//! The paper's figures for the datasets that our collections are named after.

use serde::Serialize;

use super::{Dataset, dataset_of, tables};

/// The paper beside our collections.
#[derive(Clone, Debug, Serialize)]
pub struct PaperReport {
    /// Our collections and the paper's datasets; those without one are not in the list.
    pub matches: Vec<Match>,
    /// The paper's tables, cut to these datasets and its averages.
    pub sections: Vec<PaperSection>,
}

/// A collection of ours that goes by the name of a dataset of the paper.
#[derive(Clone, Debug, Serialize)]
pub struct Match {
    /// Our collection.
    pub collection: String,
    /// The paper's dataset.
    pub dataset: Dataset,
    /// Documents that our server searched; none where it didn't say.
    pub documents: Option<u64>,
    /// Our queries.
    pub queries: usize,
    /// Whether documents and queries are as many as in the published set. Otherwise figures can't be compared.
    pub same_size: bool,
}

impl Match {
    /// Matches one of our collections; none where the paper has nothing of that name.
    pub fn of(collection: &str, documents: Option<u64>, queries: usize) -> Option<Self> {
        let dataset = dataset_of(collection)?.clone();
        let same_size = documents == Some(dataset.documents) && queries as u64 == dataset.queries;
        Some(Self { collection: collection.to_owned(), dataset, documents, queries, same_size })
    }

    /// Says in words how far the two are the same.
    pub fn describe(&self) -> String {
        let Self { collection, dataset, documents, queries, same_size } = self;
        if *same_size {
            return format!("{collection} has as many documents and queries as the paper's {}", dataset.name);
        }
        let consequence = if *documents == Some(dataset.documents) {
            "Other queries have other figures"
        } else {
            "Fewer documents make retrieval easier"
        };
        let documents = documents.map_or("an unknown number".to_owned(), |documents| documents.to_string());
        format!(
            "{collection} is NOT the paper's {}: {documents} of {} documents, {queries} of {} queries. {consequence}; the figures \
             can't be compared",
            dataset.name, dataset.documents, dataset.queries
        )
    }
}

/// One table of the paper, cut to the datasets that are matched, and its averages.
#[derive(Clone, Debug, Serialize)]
pub struct PaperSection {
    /// Its number in the paper.
    pub number: u8,
    /// What it shows.
    pub title: &'static str,
    /// The metric of its figures.
    pub measure: &'static str,
    /// The columns.
    pub columns: Vec<PaperColumn>,
    /// A row a system.
    pub rows: Vec<PaperRow>,
}

/// One column of a section: a dataset for each collection of ours that goes by its name, and the paper's averages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PaperColumn {
    /// The paper's dataset or average.
    pub dataset: String,
    /// Our collection of that name; none for an average.
    pub collection: Option<String>,
    /// Whether the two have as many documents and queries.
    pub same_size: bool,
}

/// One system of the paper.
#[derive(Clone, Debug, Serialize)]
pub struct PaperRow {
    /// Its name in the paper.
    pub system: String,
    /// A figure a column, in hundredths (Table 9: as printed); none where the paper has none.
    pub values: Vec<Option<f64>>,
    /// The same with the paper's decimals.
    #[serde(skip)]
    pub printed: Vec<Option<&'static str>>,
}

impl PaperReport {
    /// The paper's figures for these collections.
    pub fn new(matches: Vec<Match>) -> Self {
        let mut sections = Vec::new();
        for table in tables() {
            let printed = |dataset: &str| table.figures.iter().any(|figure| figure.dataset == dataset);
            let mut columns: Vec<PaperColumn> = Vec::new();
            for matched in matches.iter().filter(|matched| printed(&matched.dataset.name)) {
                columns.push(PaperColumn {
                    dataset: matched.dataset.name.clone(),
                    collection: Some(matched.collection.clone()),
                    same_size: matched.same_size,
                });
            }
            if columns.is_empty() {
                continue;
            }
            for average in ["Avg.BEIR14", "Avg.All", "Avg"].into_iter().filter(|average| printed(average)) {
                columns.push(PaperColumn { dataset: average.to_owned(), collection: None, same_size: false });
            }
            let rows = table.systems.iter().map(|system| {
                let figures = columns.iter().map(|column| table.entry(system, &column.dataset));
                PaperRow {
                    system: system.clone(),
                    values: figures.clone().map(|figure| Some(figure?.value)).collect(),
                    printed: figures.map(|figure| Some(figure?.printed)).collect(),
                }
            });
            sections.push(PaperSection {
                number: table.number,
                title: table.title,
                measure: table.measure,
                rows: rows.collect(),
                columns,
            });
        }
        Self { matches, sections }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_dataset_is_said_to_be_one() {
        let whole = Match::of("scifact", Some(5_183), 300).unwrap();
        let part = Match::of("fever_dev", Some(4_864), 1_240).unwrap();
        assert!(whole.same_size && !part.same_size);
        assert!(part.describe().contains("NOT the paper's FEVER: 4864 of 5416568"), "{}", part.describe());
        assert!(!Match::of("scifact", None, 300).unwrap().same_size);
        let fewer_queries = Match::of("scifact_first40", Some(5_183), 40).unwrap().describe();
        assert!(fewer_queries.contains("40 of 300 queries. Other queries"), "{fewer_queries}");
        let report = PaperReport::new(vec![whole, part]);
        let second = &report.sections[0];
        let datasets: Vec<&str> = second.columns.iter().map(|column| column.dataset.as_str()).collect();
        assert_eq!(datasets, ["Scifact", "FEVER", "Avg.BEIR14", "Avg.All"]);
        assert_eq!(second.columns[1].collection.as_deref(), Some("fever_dev"));
        let bm25 = second.rows.iter().find(|row| row.system == "BM25").unwrap();
        assert_eq!(bm25.values, [Some(66.5), Some(75.3), Some(43.0), Some(41.7)]);
        assert_eq!(bm25.printed, [Some("66.5"), Some("75.3"), Some("43.0"), Some("41.7")]);
        assert!(!report.sections.iter().any(|section| section.number == 9), "no NQ, no HotpotQA");
    }
}
