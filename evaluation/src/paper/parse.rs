//! From the transcribed files to typed tables. The files are compiled in and tested, so what a broken one would need is
//! left out without an error; the tests count the figures.

use super::{Dataset, Figure, PaperTable, words};

struct Transcript {
    number: u8,
    title: &'static str,
    measure: &'static str,
    layout: Layout,
    text: &'static str,
}

/// How a table lies in its file: what its columns are.
enum Layout {
    /// Systems; a row is a dataset.
    Systems,
    /// Datasets, after two columns that name the retriever and the model.
    Datasets,
    /// `dataset-measure`; a row is a model.
    Measures,
}

const TRANSCRIPTS: [Transcript; 7] = [
    Transcript {
        number: 2,
        title: "Overall performance",
        measure: "ndcg@10",
        layout: Layout::Systems,
        text: include_str!("tables/table2_ndcg10.tsv"),
    },
    Transcript {
        number: 3,
        title: "Ablation study",
        measure: "ndcg@10",
        layout: Layout::Datasets,
        text: include_str!("tables/table3_ablation_ndcg10.tsv"),
    },
    Transcript {
        number: 5,
        title: "Mainstream retrievers",
        measure: "ndcg@10",
        layout: Layout::Systems,
        text: include_str!("tables/table5_mainstream_ndcg10.tsv"),
    },
    Transcript {
        number: 6,
        title: "Recall",
        measure: "recall@100",
        layout: Layout::Systems,
        text: include_str!("tables/table6_recall100.tsv"),
    },
    Transcript {
        number: 7,
        title: "ExpandR with Qwen2.5-7B",
        measure: "ndcg@10",
        layout: Layout::Systems,
        text: include_str!("tables/table7_qwen_ndcg10.tsv"),
    },
    Transcript {
        number: 8,
        title: "Expansions across retrievers",
        measure: "ndcg@10",
        layout: Layout::Systems,
        text: include_str!("tables/table8_cross_retriever_ndcg10.tsv"),
    },
    Transcript {
        number: 9,
        title: "Entailment and length of expansions",
        measure: "NLI score, average length (in no stated unit)",
        layout: Layout::Measures,
        text: include_str!("tables/table9_nli_length.tsv"),
    },
];

pub(super) fn datasets() -> Vec<Dataset> {
    let mut datasets = Vec::new();
    for row in rows(include_str!("tables/datasets.tsv")).skip(1) {
        if let [name, documents, queries, aliases] = row.as_slice()
            && let (Ok(documents), Ok(queries)) = (documents.parse(), queries.parse())
        {
            let aliases = aliases.split(',').map(str::to_owned).collect();
            datasets.push(Dataset { name: (*name).to_owned(), documents, queries, aliases });
        }
    }
    datasets
}

pub(super) fn tables() -> Vec<PaperTable> {
    TRANSCRIPTS.iter().map(table).collect()
}

fn table(transcript: &Transcript) -> PaperTable {
    let Transcript { number, title, measure, .. } = *transcript;
    let mut table = PaperTable { number, title, measure, systems: Vec::new(), figures: Vec::new() };
    let mut rows = rows(transcript.text);
    let header = rows.next().unwrap_or_default();
    let names = match transcript.layout {
        Layout::Datasets => 2,
        Layout::Systems | Layout::Measures => 1,
    };
    for row in rows {
        for (column, cell) in header.iter().zip(&row).skip(names) {
            let Ok(value) = cell.parse() else { continue };
            let (system, dataset) = match transcript.layout {
                Layout::Systems => ((*column).to_owned(), row[0]),
                Layout::Datasets => (format!("{}: {}", row[0], row[1]), *column),
                Layout::Measures => {
                    let Some((dataset, measure)) = column.split_once('-') else { continue };
                    (format!("{}: {measure}", row[0]), dataset)
                }
            };
            if !table.systems.contains(&system) {
                table.systems.push(system.clone());
            }
            table.figures.push(Figure { dataset: dataset_name(dataset), system, value, printed: cell });
        }
    }
    table
}

/// One name for a dataset, whatever a table calls it.
fn dataset_name(printed: &str) -> String {
    if let Some(rest) = printed.strip_prefix("Av.") {
        return format!("Avg.{rest}"); // Table 5's slip
    }
    let alias = words(printed).join(" ");
    let known = datasets().into_iter().find(|dataset| dataset.aliases.contains(&alias));
    known.map_or_else(|| printed.to_owned(), |dataset| dataset.name)
}

fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    text.lines().filter(|line| !line.is_empty()).map(|line| line.split('\t').collect())
}
