//! Comparisons of small run folders that are made here.

mod fake;

use axum::Json;
use axum::routing::{get, post};
use expandr_evaluation::client::{Endpoint, EndpointOptions, EvaluationOptions, evaluate};
use expandr_evaluation::compare::{Cell, Mark, Report, RunArgument, compare, html, markdown, summary, write};
use expandr_evaluation::{Collection, Result};
use serde_json::{Value, json};

use super::double::{Double, serve};
use fake::{Fake, Room, ranks};

fn cell<'a>(report: &'a Report, metric: &str, row: &str, system: &str) -> &'a Cell {
    let table = report.tables.iter().find(|table| table.metric == metric).unwrap();
    let row = table.rows.iter().chain(&table.average).find(|candidate| candidate.name == row).unwrap();
    row.cells.iter().find(|cell| cell.system == system).unwrap()
}

/// Three systems on two collections: better, a little better, worse than the baseline.
async fn four_systems(room: &Room) -> Report {
    let mut runs = Vec::new();
    for collection in ["one", "two"] {
        for (system, rank) in [("raw", 3), ("better", 1), ("worse", 7)] {
            let mut fake = Fake::new(collection, ranks(|number| if number < 20 { rank } else { 3 }));
            fake.expanded = system != "raw";
            runs.push(room.run(Some(system), &format!("{collection}-{system}"), &fake));
        }
        // One query of forty differs: no test finds that significant.
        let fake = Fake::new(collection, ranks(|number| if number == 0 { 1 } else { 3 }));
        runs.push(room.run(Some("same"), &format!("{collection}-same"), &fake));
    }
    compare(&runs, &room.options(), None).await.unwrap()
}

#[tokio::test]
async fn tables_hold_means_marks_and_corrected_tests() {
    let room = Room::new(&["one", "two"]);
    let report = four_systems(&room).await;
    assert_eq!(report.baseline, "raw");
    assert!(!report.degraded && report.warnings.is_empty(), "{:?}", report.warnings);
    let third = 0.5; // 1/log2(4)
    for row in ["one", "two", "average"] {
        let (raw, better) = (cell(&report, "ndcg@10", row, "raw"), cell(&report, "ndcg@10", row, "better"));
        assert!((raw.mean.unwrap() - third).abs() < 1e-12);
        assert!((better.mean.unwrap() - (1.0 + third) / 2.0).abs() < 1e-12);
        assert!(raw.comparison.is_none() && !raw.best && better.best);
        assert_eq!(better.mark, Mark::Better);
        assert_eq!(cell(&report, "ndcg@10", row, "worse").mark, Mark::Worse);
        let same = cell(&report, "ndcg@10", row, "same");
        assert_eq!(same.mark, Mark::None);
        let test = &better.comparison.as_ref().unwrap().comparison;
        let queries = if row == "average" { 80 } else { 40 };
        assert_eq!((test.queries, test.wins, test.losses), (queries, queries / 2, 0));
        assert!((test.difference - 0.25).abs() < 1e-12 && test.interval.0 > 0.1);
        // Holm over three systems: the smallest of three p-values is taken three times.
        let p = |system: &str| cell(&report, "ndcg@10", row, system).comparison.clone().unwrap();
        let smallest = ["better", "worse", "same"].map(|system| p(system).comparison.p_value);
        let smallest = smallest.into_iter().fold(1.0, f64::min);
        let corrected = ["better", "worse", "same"].map(|system| p(system).p_holm);
        assert!((corrected.into_iter().fold(1.0, f64::min) - 3.0 * smallest).abs() < 1e-12);
        assert!(p("same").p_holm >= p("same").comparison.p_value);
    }
    // Recall is 1 for all: nothing differs, all are best.
    assert!(cell(&report, "recall@100", "one", "worse").best);
    assert_eq!(cell(&report, "recall@100", "average", "worse").mark, Mark::None);
    let text = markdown(&report);
    assert!(text.contains("| one (40 queries) | 50.00 | **75.00**† |"), "{text}");
    assert!(text.contains("| average of 2 collections | 50.00 | **75.00**† |"), "{text}");
    assert!(text.contains("▼"), "{text}");
    let change =
        report.changes.iter().find(|change| change.collection == "two" && change.system == "better").unwrap();
    assert_eq!((change.wins, change.losses, change.ties), (20, 0, 20));
    assert_eq!((change.largest_gains.len(), change.largest_losses.len()), (10, 0));
    assert_eq!(change.differences.len(), 40);
}

#[tokio::test]
async fn queries_that_change_show_what_explains_them() {
    let room = Room::new(&["one", "two"]);
    let report = four_systems(&room).await;
    let change =
        report.changes.iter().find(|change| change.collection == "one" && change.system == "worse").unwrap();
    assert_eq!(change.largest_losses.len(), 10);
    let query = change.largest_losses.iter().find(|query| query.id == "q0").unwrap();
    assert_eq!(query.query, "what | is <b>0</b>");
    assert!(query.difference < -0.1);
    assert_eq!(query.expansions.len(), 1);
    assert!(query.baseline_expansions.is_empty());
    let gold = &query.gold[0];
    assert_eq!((gold.id.as_str(), gold.title.as_deref()), ("d0", Some("Title <0>")));
    assert_eq!((gold.baseline_rank, gold.system_rank), (Some(3), Some(7)));
    assert_eq!(query.baseline_first[2].relevant, Some(true));
    let unnamed = change.largest_losses.iter().find(|query| query.id == "q10").unwrap();
    assert_eq!(unnamed.gold[0].title.as_deref(), Some("gold passage number 10 tells it all"));
}

#[tokio::test]
async fn expansions_are_measured_against_gold_passages_and_answers() {
    let room = Room::new(&["one", "two"]);
    let report = four_systems(&room).await;
    let quality = report.quality.iter().find(|quality| quality.system == "better").unwrap();
    assert_eq!(quality.quality.expansions, 40);
    assert_eq!(quality.quality.tokens.unwrap().mean, 9.0);
    assert!(quality.quality.bleu_passages.unwrap().corpus > 1.0);
    assert!(quality.quality.bleu_answers.is_some());
    assert_eq!(quality.raw_overlap_source.as_deref(), Some("raw"));
    assert!((quality.raw_overlap_at_10.unwrap() - 1.0).abs() < 1e-12);
    assert_eq!(quality.quality.query_cosine, None);
    assert!(!report.quality.iter().any(|quality| quality.system == "raw"));

    let mut fake = Fake::new("one", ranks(|_| 1));
    fake.expanded = true;
    fake.recorded = Some((0.75, 0.4));
    let runs = [room.run(Some("e"), "recorded", &fake)];
    let report = compare(&runs, &room.options(), None).await.unwrap();
    assert_eq!(report.quality[0].quality.query_cosine.unwrap().mean, 0.75);
    assert!((report.quality[0].raw_overlap_at_10.unwrap() - 0.4).abs() < 1e-12);
    assert_eq!(report.quality[0].raw_overlap_source.as_deref(), Some("recorded"));
}

#[tokio::test]
async fn degraded_runs_are_flagged_first_in_every_output() {
    let room = Room::new(&["one"]);
    let raw = room.run(None, "raw", &Fake::new("one", ranks(|_| 2)));
    let mut fake = Fake::new("one", ranks(|_| 1));
    (fake.expanded, fake.degraded) = (true, 4);
    let expanded = room.run(None, "expanded", &fake);
    let report = compare(&[raw, expanded], &room.options(), None).await.unwrap();
    assert!(report.degraded);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["degraded"], true);
    assert!(
        json["warnings"][0]
            .as_str()
            .unwrap()
            .starts_with("DEGRADED: \"dense expanded w=0.5 64 tokens\" on one answered 4 of 40"),
        "{json}"
    );
    assert!(cell(&report, "ndcg@10", "one", "dense expanded w=0.5 64 tokens").degraded);
    for text in [markdown(&report), summary(&report), html(&report).unwrap()] {
        let warning = text.find("DEGRADED").expect("the warning");
        assert!(warning < text.find("nDCG@10").unwrap(), "the warning comes first");
        assert!(text.contains('⚠'));
    }
}

#[tokio::test]
async fn queries_that_a_run_lacks_are_named_and_left_out_for_all() {
    let room = Room::new(&["one"]);
    let whole =
        room.run(Some("whole"), "whole", &Fake::new("one", ranks(|number| if number < 38 { 1 } else { 5 })));
    let part = room.run(Some("part"), "part", &Fake::new("one", ranks(|_| 1)[..38].to_vec()));
    let report = compare(&[whole, part], &room.options(), None).await.unwrap();
    let warning = report.warnings.iter().find(|warning| warning.contains("left out")).unwrap();
    assert!(warning.contains("\"part\" did not score 2 of 40 queries (q38, q39)"), "{warning}");
    // The mean is over the 38 common queries.
    assert_eq!(cell(&report, "ndcg@10", "one", "whole").mean, Some(1.0));
    assert_eq!(report.per_query[0].left_out["part"], ["q38", "q39"]);
    assert_eq!(report.per_query[0].values.len(), 38);
}

#[tokio::test]
async fn the_page_stands_alone_and_escapes_what_it_shows() {
    let room = Room::new(&["one", "two"]);
    let report = four_systems(&room).await;
    let page = html(&report).unwrap();
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "<iframe"] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    assert!(page.contains("&lt;script&gt;") && page.contains("prefers-color-scheme: dark"));
    // Two collections: changes and lengths each, BLEU against passages and answers.
    assert_eq!(page.matches("<svg").count(), 6);
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    let out = room.root().join("out");
    write(&report, &out).unwrap();
    let json: Value = serde_json::from_slice(&fs_err::read(out.join("compare.json")).unwrap()).unwrap();
    assert_eq!(json["form"], "expandr-comparison/1");
    assert_eq!(json["tables"][0]["rows"][0]["cells"][1]["mark"], "better");
    assert_eq!(fs_err::read_to_string(out.join("compare.md")).unwrap(), markdown(&report));
    assert_eq!(fs_err::read_to_string(out.join("compare.html")).unwrap(), page);
}

#[tokio::test]
async fn a_group_is_one_row_and_counts_once_in_the_average() {
    let room = Room::new(&["cqadupstack/android", "cqadupstack/english", "one"]);
    let mut runs = Vec::new();
    for (collection, rank) in [("cqadupstack/android", 1), ("cqadupstack/english", 3), ("one", 3)] {
        let folder = collection.replace('/', "-");
        let baseline = Fake::new(collection, ranks(|_| 3));
        runs.push(room.run(Some("base"), &format!("{folder}-base"), &baseline));
        runs.push(room.run(Some("other"), &folder, &Fake::new(collection, ranks(|_| rank))));
    }
    let report = compare(&runs, &room.options(), None).await.unwrap();
    let group = cell(&report, "ndcg@10", "cqadupstack", "other");
    assert!((group.mean.unwrap() - 0.75).abs() < 1e-12);
    assert!((cell(&report, "ndcg@10", "average", "other").mean.unwrap() - 0.625).abs() < 1e-12);
    assert_eq!(report.tables[0].rows.len(), 2);
    // Without one forum there is no figure for the group, and so none in the average.
    let report = compare(&runs[..3], &room.options(), None).await.unwrap();
    assert_eq!(cell(&report, "ndcg@10", "cqadupstack", "other").mean, None);
    assert!(report.tables[0].average.is_none());
}

#[tokio::test]
async fn metrics_that_a_run_lacks_are_computed_from_its_lists() {
    let room = Room::new(&["one"]);
    let runs = [
        room.run(Some("a"), "a", &Fake::new("one", ranks(|_| 2))),
        room.run(Some("b"), "b", &Fake::new("one", ranks(|_| 4))),
    ];
    let mut options = room.options();
    options.metrics = vec!["mrr@10".parse().unwrap()];
    let report = compare(&runs, &options, None).await.unwrap();
    assert_eq!(cell(&report, "mrr@10", "one", "a").mean, Some(0.5));
    assert_eq!(cell(&report, "mrr@10", "one", "b").mean, Some(0.25));
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    options.metrics = vec!["recall@1000".parse().unwrap()];
    let report = compare(&runs, &options, None).await.unwrap();
    let warned = report.warnings.iter().filter(|warning| warning.contains("recall@1000 looks deeper"));
    assert_eq!(warned.count(), 2, "{:?}", report.warnings);
    options.metrics = vec!["mrr@10".parse().unwrap()];
    options.collections = None;
    let error = compare(&runs, &options, None).await.unwrap_err().to_string();
    assert!(error.contains("mrr@10 is not in its metrics.json"), "{error}");
}

#[tokio::test]
async fn names_come_from_arguments_runs_and_settings() {
    let room = Room::new(&["one", "two"]);
    let mut recorded = Fake::new("one", ranks(|_| 2));
    recorded.name = Some("recorded");
    let runs = [
        room.run(None, "a", &Fake::new("one", ranks(|_| 1))),
        room.run(None, "b", &recorded),
        room.run(Some("given"), "c", &Fake::new("one", ranks(|_| 1))),
        room.run(None, "d", &Fake::new("two", ranks(|_| 1))),
    ];
    let report = compare(&runs, &room.options(), None).await.unwrap();
    let names: Vec<&str> = report.systems.iter().map(|system| system.name.as_str()).collect();
    assert_eq!(names, ["dense raw", "recorded", "given"]);
    assert_eq!(report.systems[0].runs.len(), 2);
    let error =
        compare(&[runs[0].clone(), runs[0].clone()], &room.options(), None).await.unwrap_err().to_string();
    assert!(
        error.contains("are both \"dense raw\" on one (test); tell them apart with NAME=PATH"),
        "{error}"
    );
    let mut options = room.options();
    options.baseline = Some("nobody".into());
    let error = compare(&runs, &options, None).await.unwrap_err().to_string();
    assert!(
        error.contains("no system is called \"nobody\"; the systems are: dense raw, recorded, given"),
        "{error}"
    );
    let argument: RunArgument = format!("my name={}", runs[0].path.display()).parse().unwrap();
    assert_eq!((argument.name.as_deref(), &argument.path), (Some("my name"), &runs[0].path));
}

#[tokio::test]
async fn what_is_refused_says_why() {
    let room = Room::new(&["one", "two"]);
    let good = room.run(Some("good"), "good", &Fake::new("one", ranks(|_| 1)));
    let refused = async |runs: &[RunArgument]| -> String {
        let result: Result<Report> = compare(runs, &room.options(), None).await;
        result.unwrap_err().to_string()
    };
    assert!(refused(&[]).await.contains("no run folder"));
    let nowhere = RunArgument { name: None, path: room.root().join("nowhere") };
    assert!(refused(&[nowhere]).await.contains("not a run folder"));
    let unfinished = room.run(Some("unfinished"), "unfinished", &Fake::new("one", ranks(|_| 1)));
    fs_err::remove_file(unfinished.path.join("metrics.json")).unwrap();
    assert!(refused(&[unfinished]).await.contains("the run is not finished"));
    // Other texts under the same ids.
    let other = room.run(Some("other"), "other", &Fake::new("one", ranks(|_| 1)));
    let expansions = fs_err::read_to_string(other.path.join("expansions.jsonl")).unwrap();
    fs_err::write(other.path.join("expansions.jsonl"), expansions.replace("what | is", "who is")).unwrap();
    assert!(refused(&[good.clone(), other]).await.contains("runs over different queries"));
    let mut options = room.options();
    options.alpha = 5.0;
    assert!(compare(&[good], &options, None).await.unwrap_err().to_string().contains("alpha 5"));
}

#[tokio::test]
async fn a_collection_with_other_queries_is_not_used() {
    let room = Room::new(&["one"]);
    let run = room.run(Some("a"), "a", &Fake::new("one", ranks(|_| 1)));
    let queries = room.root().join("collections/one/queries.jsonl");
    let changed = fs_err::read_to_string(&queries).unwrap().replace("what", "why");
    fs_err::write(&queries, changed).unwrap();
    let report = compare(&[run], &room.options(), None).await.unwrap();
    assert!(
        report.warnings.iter().any(|warning| warning.contains("are not those of the runs")),
        "{:?}",
        report.warnings
    );
}

/// A server whose vectors count letters, so that equal texts have equal vectors.
async fn embedding_server(encoder: &'static str) -> Endpoint {
    async fn embed(Json(request): Json<Value>) -> Json<Value> {
        let vector = |text: &Value| -> Vec<f64> {
            let mut counts = vec![0.1; 26];
            for letter in text.as_str().unwrap().bytes().filter(u8::is_ascii_alphabetic) {
                counts[usize::from(letter.to_ascii_lowercase() - b'a')] += 1.0;
            }
            counts
        };
        assert!(
            request["normalize"] == true
                && ["query", "document"].iter().any(|name| request["prompt_name"] == *name)
        );
        Json(request["inputs"].as_array().unwrap().iter().map(vector).collect::<Vec<_>>().into())
    }
    let info = json!({"bundle": {"encoder": {"id": encoder}}});
    let router = axum::Router::new()
        .route("/info", get(async move || Json(info.clone())))
        .route("/embed", post(embed));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Endpoint::new(&url, None, EndpointOptions::default()).unwrap()
}

#[tokio::test]
async fn maps_are_sampled_by_seed_and_only_of_the_same_encoder() {
    let room = Room::new(&["one"]);
    let mut fake = Fake::new("one", ranks(|_| 1));
    fake.expanded = true;
    let runs =
        [room.run(Some("raw"), "raw", &Fake::new("one", ranks(|_| 2))), room.run(Some("e"), "e", &fake)];
    let mut options = room.options();
    options.map_queries = 8;
    let endpoint = embedding_server("encoder-1").await;
    let report = compare(&runs, &options, Some(&endpoint)).await.unwrap();
    assert_eq!(report.maps.len(), 1, "the raw run has no expansions");
    let map = &report.maps[0];
    assert_eq!((map.system.as_str(), map.points.len()), ("e", 8));
    assert!(map.cosine_expansion_gold > map.cosine_query_gold, "the made-up expansions repeat the passages");
    assert!(map.cosine_average_gold > map.cosine_query_gold);
    assert!(html(&report).unwrap().contains("t-SNE of 8 queries"));
    let again = compare(&runs, &options, Some(&endpoint)).await.unwrap();
    let ids =
        |report: &Report| report.maps[0].points.iter().map(|point| point.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&report), ids(&again));
    assert_eq!(report.maps[0].points[0].query, again.maps[0].points[0].query);
    options.significance.seed = 7;
    assert_ne!(ids(&report), ids(&compare(&runs, &options, Some(&endpoint)).await.unwrap()));

    let endpoint = embedding_server("encoder-2").await;
    let report = compare(&runs, &options, Some(&endpoint)).await.unwrap();
    assert!(report.maps.is_empty());
    let note = report.notes.iter().find(|note| note.contains("no map")).unwrap();
    assert!(note.contains("its encoder is encoder-1, that of the endpoint encoder-2"), "{note}");
}

#[tokio::test]
async fn the_papers_figures_stand_beside_ours_and_say_that_a_part_is_a_part() {
    let room = Room::new(&["scifact", "nq_open", "own"]);
    let runs = ["scifact", "nq_open", "own"]
        .map(|collection| room.run(Some("raw"), collection, &Fake::new(collection, ranks(|_| 1))));
    let mut options = room.options();
    options.paper = true;
    let report = compare(&runs, &options, None).await.unwrap();
    for text in [markdown(&report), html(&report).unwrap()] {
        assert!(
            text.contains("nq_open is NOT the paper's NQ: 40 of 2681468 documents, 40 of 3452 queries"),
            "{text}"
        );
        assert!(text.contains("Scifact (ours: scifact, another collection)"), "{text}");
        assert!(text.contains("55.91"), "AnchorDR-ExpandR on NQ");
    }
    assert!(markdown(&report).contains("| ours: raw | 100.00 | 100.00 | – | – |"), "{}", markdown(&report));
    let paper = report.paper.unwrap();
    assert_eq!(paper.matches.len(), 2);
    assert_eq!(
        paper.sections.iter().map(|section| section.number).collect::<Vec<_>>(),
        [2, 3, 5, 6, 7, 8, 9]
    );
}

#[tokio::test]
async fn what_an_evaluation_writes_can_be_compared() {
    let room = Room::new(&["one"]);
    let collection = Collection::open(&room.root().join("collections/one"), None).unwrap();
    let mut runs = Vec::new();
    for ranking in ["lexical", "dense"] {
        let mut double = Double::default();
        if ranking == "dense" {
            double.degrades_every = Some(4);
        }
        for document in collection.documents().unwrap() {
            let document = document.unwrap();
            double.documents.lock().unwrap().insert(document.id, document.text);
        }
        let url = serve(std::sync::Arc::new(double)).await;
        let endpoint = Endpoint::new(&url, None, EndpointOptions::default()).unwrap();
        let mut options = EvaluationOptions::new(room.root().join("runs").join(ranking));
        options.expansion = Some(json!({"mode": "always", "query_weight": 0.5}));
        if ranking == "lexical" {
            options.search.insert("ranking".into(), json!(ranking));
        }
        let report = evaluate(&endpoint, &collection, &options, |_| {}).await.unwrap();
        assert_eq!(report.queries, 40);
        runs.push(RunArgument { name: None, path: options.folder });
    }
    let report = compare(&runs, &room.options(), None).await.unwrap();
    let names: Vec<&str> = report.systems.iter().map(|system| system.name.as_str()).collect();
    assert_eq!(names, ["lexical expanded w=0.5", "dense expanded w=0.5"]);
    assert!(
        report.degraded && report.warnings[0].contains("answered 10 of 40 queries"),
        "{:?}",
        report.warnings
    );
    assert_eq!((report.quality[0].quality.queries, report.quality[1].quality.queries), (40, 30));
    assert!((report.quality[0].raw_overlap_at_10.unwrap() - 0.7).abs() < 1e-9);
    assert!(report.quality[0].quality.query_cosine.is_some());
    // The words of the query "what | is <b>n</b>" find document n by its number alone, in both runs.
    assert_eq!(
        cell(&report, "ndcg@10", "one", names[0]).mean,
        cell(&report, "ndcg@10", "one", names[1]).mean
    );
    assert!(cell(&report, "ndcg@10", "one", names[0]).mean.unwrap() > 0.9);
}
