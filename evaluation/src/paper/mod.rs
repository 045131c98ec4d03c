//! The figures that the ExpandR paper prints, to stand beside ours.
//!
//! Tables 2, 3, 5, 6, 7, 8 and 9 of the paper, transcribed to `tables/*.tsv`. The paper's datasets are BEIR's, whole; sizes in
//! `tables/datasets.tsv` are those of Table 1 of Thakur et al., "BEIR: a heterogeneous benchmark for zero-shot evaluation of
//! information retrieval models" (2021). A collection of ours that goes by such a name may be a part of it: [`Match`] says
//! which, because the figures of a part can't be compared with those of the whole.

mod parse;
mod report;

pub use report::{Match, PaperColumn, PaperReport, PaperRow, PaperSection};

use std::sync::LazyLock;

use serde::Serialize;

/// A dataset of the paper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dataset {
    /// As in the paper's Table 2.
    pub name: String,
    /// Documents of the published set.
    pub documents: u64,
    /// Test queries of the published set (MS MARCO: dev).
    pub queries: u64,
    #[serde(skip)]
    aliases: Vec<String>,
}

/// One table of the paper.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PaperTable {
    /// Its number in the paper.
    pub number: u8,
    /// What it shows.
    pub title: &'static str,
    /// The metric of its figures, as [`Metric`](crate::Metric) writes it; Table 9 has two measures, which are in the systems' names.
    pub measure: &'static str,
    /// Systems in the paper's order.
    pub systems: Vec<String>,
    /// What was printed.
    pub figures: Vec<Figure>,
}

/// One printed figure. Metrics are in hundredths, as in the paper.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The dataset's name in [`datasets`]; an average has the paper's name (`Avg.BEIR14`, `Avg.All`, `Avg`).
    pub dataset: String,
    /// The system's name in the paper; where a table has several retrievers, `retriever: model`.
    pub system: String,
    /// The figure.
    pub value: f64,
    /// The same with the paper's decimals.
    #[serde(skip)]
    pub printed: &'static str,
}

impl PaperTable {
    /// The figure of a system on a dataset; none where the paper has none.
    pub fn figure(&self, system: &str, dataset: &str) -> Option<f64> {
        self.entry(system, dataset).map(|figure| figure.value)
    }

    fn entry(&self, system: &str, dataset: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.system == system && figure.dataset == dataset)
    }
}

/// The paper's datasets.
pub fn datasets() -> &'static [Dataset] {
    static DATASETS: LazyLock<Vec<Dataset>> = LazyLock::new(parse::datasets);
    &DATASETS
}

/// The paper's tables.
pub fn tables() -> &'static [PaperTable] {
    static TABLES: LazyLock<Vec<PaperTable>> = LazyLock::new(parse::tables);
    &TABLES
}

/// The dataset whose name a collection's name starts with: `fever_dev` gives FEVER, `nq_open_oracle` NQ, `cqadupstack/android`
/// CQADupStack; none for others. It says nothing about whether the collection is the whole dataset.
pub fn dataset_of(collection: &str) -> Option<&'static Dataset> {
    let words = words(collection);
    let mut best: Option<(&Dataset, usize)> = None;
    for dataset in datasets() {
        for alias in &dataset.aliases {
            let alias: Vec<&str> = alias.split(' ').collect();
            let matches =
                words.len() >= alias.len() && words.iter().zip(&alias).all(|(word, wanted)| word == wanted);
            if matches && best.is_none_or(|(_, length)| alias.len() > length) {
                best = Some((dataset, alias.len()));
            }
        }
    }
    best.map(|(dataset, _)| dataset)
}

fn words(name: &str) -> Vec<String> {
    let parts = name.split(|character: char| !character.is_ascii_alphanumeric());
    parts.filter(|part| !part.is_empty()).map(str::to_ascii_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(number: u8) -> &'static PaperTable {
        tables().iter().find(|table| table.number == number).unwrap()
    }

    #[test]
    fn figures_are_the_papers() {
        assert_eq!(tables().iter().map(|table| table.number).collect::<Vec<_>>(), [2, 3, 5, 6, 7, 8, 9]);
        assert_eq!(table(2).figure("AnchorDR-ExpandR", "Scifact"), Some(63.43));
        assert_eq!(table(2).figure("BM25", "Climate-FEVER"), Some(21.4));
        assert_eq!(table(2).figure("BERT-Raw", "Avg.All"), Some(4.02));
        assert_eq!(table(3).figure("Contriever: w/o LLM Training", "MS MARCO"), Some(33.45));
        assert_eq!(table(5).figure("E5", "Climate-FEVER"), Some(15.4));
        assert_eq!(table(6).figure("Contriever-ExpandR", "FEVER"), Some(96.94));
        assert_eq!(table(7).figure("Contriever-ExpandR-Qwen2.5-7B", "NQ"), Some(50.86));
        assert_eq!(table(8).figure("BGE-ExpandR", "Quora"), Some(88.0));
        assert_eq!(table(9).figure("ExpandR: length", "HotpotQA"), Some(120.52));
        assert_eq!(table(9).figure("ExpandR: NLI", "NQ"), Some(8.64));
        let counts: Vec<usize> = tables().iter().map(|table| table.figures.len()).collect();
        assert_eq!(counts, [17 * 13, 14 * 9, 17 * 9, 17 * 13, 17 * 3, 17 * 6, 4 * 4]);
    }

    /// The averages that the paper prints follow from its rows, so a slip in the transcription shows. Two columns don't add
    /// up in the paper itself: DPR's averages in Table 6 (they fit the other way round) and one of Table 8.
    #[test]
    fn averages_follow_from_the_rows() {
        let mut wrong = Vec::new();
        for table in tables().iter().filter(|table| matches!(table.number, 2 | 5 | 6 | 7 | 8)) {
            for system in &table.systems {
                let rows: Vec<f64> =
                    datasets().iter().filter_map(|dataset| table.figure(system, &dataset.name)).collect();
                assert_eq!(rows.len(), 15, "table {}, {system}", table.number);
                let mean_of = |rows: &[f64]| rows.iter().sum::<f64>() / rows.len() as f64;
                let off = |rows: &[f64], average: &str| {
                    (mean_of(rows) - table.figure(system, average).unwrap()).abs() > 0.06
                };
                // MS MARCO comes first and is not one of the fourteen.
                if off(&rows, "Avg.All") || off(&rows[1..], "Avg.BEIR14") {
                    wrong.push((table.number, system.as_str()));
                }
            }
        }
        assert_eq!(wrong, [(6, "DPR"), (8, "AnchorDR-VanillaLLM")]);
    }

    #[test]
    fn collections_are_matched_by_whole_words() {
        let name = |collection: &str| dataset_of(collection).map(|dataset| dataset.name.as_str());
        for (collection, dataset) in [
            ("scifact", Some("Scifact")),
            ("fever_dev", Some("FEVER")),
            ("nq_open_oracle", Some("NQ")),
            ("hotpotqa_dev500", Some("HotpotQA")),
            ("climate-fever", Some("Climate-FEVER")),
            ("webis-touche2020", Some("Touche-2020")),
            ("dbpedia-entity", Some("DBPedia")),
            ("cqadupstack/android", Some("CQADupStack")),
            ("msmarco", Some("MS MARCO")),
            ("cranfield", None),
            ("wikiqa", None),
            ("nqx", None),
        ] {
            assert_eq!(name(collection), dataset, "{collection}");
        }
    }
}
