//! Runs whose settings, inputs or files are others than before.

use super::*;

#[tokio::test]
async fn changed_settings_are_refused_where_work_would_be_lost() {
    let mut bench = Bench::new();
    bench.run(&[], Options::default()).await.unwrap();
    let before = bench.hashes("candidates");

    let error = bench.run(&["candidates.samples=2"], Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("stage candidates: it was done with other settings (samples: 3 → 2)"), "{error}");
    assert!(error.contains("--redo") && bench.hashes("candidates") == before);

    let redo = Options { redo: true, ..Options::default() };
    bench.run(&["candidates.samples=2"], redo).await.unwrap();
    assert_eq!(bench.lines::<WrittenLine>("candidates.jsonl")[0].texts.len(), 4);
    let started = bench.ears.stages("stage_started");
    assert!(started.contains(&"dpo".into()) && !started.contains(&"answers".into()), "{started:?}");
    assert!(!started.iter().any(|name| name == "contrastive@ft"), "{started:?}");
}

#[tokio::test]
async fn several_expansions_a_query_are_written_trained_on_and_searched_with() {
    let mut bench = Bench::new();
    bench.run(&[], Options::default()).await.unwrap();
    let one: Vec<WrittenLine> = bench.lines("expansions.jsonl");
    let evaluated = bench.hashes("evaluation");

    let error = bench.run(&["expansions.count=3"], Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("it was done with other settings (count: nothing → 3)"), "{error}");
    let redo = Options { redo: true, ..Options::default() };
    bench.run(&["expansions.count=3"], redo).await.unwrap();
    let started = bench.ears.stages("stage_started");
    assert!(!started.contains(&"dpo".into()), "{started:?}");
    let three: Vec<WrittenLine> = bench.lines("expansions.jsonl");
    for (one, three) in one.iter().zip(&three) {
        assert_eq!((one.texts.len(), three.texts.len()), (1, 3));
        assert_eq!(one.texts[0], three.texts[0], "the first sample is that of a run with one");
    }
    assert!(three.iter().any(|line| line.texts[1].text != line.texts[0].text));
    let examples: Vec<crate::example::ExampleLine> = bench.lines("examples.jsonl");
    assert!(examples.iter().all(|line| line.expansions.len() == 3), "{:?}", examples[0]);
    assert_eq!(bench.lines::<WrittenLine>("test-expansions.jsonl")[0].texts.len(), 3);
    assert_ne!(bench.hashes("evaluation"), evaluated);
}

#[tokio::test]
async fn cheap_stages_are_done_again_and_what_gives_the_same_ends_there() {
    let mut bench = Bench::new();
    bench.run(&[], Options::default()).await.unwrap();
    // Fewer candidates are eligible, but none of those that were chosen: nothing after it changes.
    bench.run(&["rewards.min_words=2"], Options::default()).await.unwrap();
    assert_eq!(bench.ears.stages("stage_started"), ["preferences"]);
    bench.run(&["evaluation.query_weight=0.9", "rewards.min_words=2"], Options::default()).await.unwrap();
    assert_eq!(bench.ears.stages("stage_started"), ["evaluation", "report"]);
}

#[tokio::test]
async fn more_pairs_keep_what_was_written() {
    let mut bench = Bench::new();
    let stages = [Stage::Pairs, Stage::Candidates, Stage::Answers, Stage::Scores];
    bench.run(&["data.dpo_queries=8"], only(&stages)).await.unwrap();
    let before = bench.steps.prompts.load(Ordering::SeqCst);
    assert_eq!(before, 16);
    bench.run(&["data.dpo_queries=12"], only(&stages)).await.unwrap();
    assert_eq!(bench.steps.prompts.load(Ordering::SeqCst) - before, 8, "four candidates and four answers");
    let encoded = bench.steps.encoded.load(Ordering::SeqCst);
    assert_eq!(encoded, 12 * (6 + 3));
    let mut fresh = Bench::new();
    fresh.run(&[], only(&stages)).await.unwrap();
    assert_eq!(bench.hashes("scores"), fresh.hashes("scores"));
}

#[tokio::test]
async fn files_that_were_changed_are_noticed() {
    let mut bench = Bench::new();
    bench.run(&[], Options::default()).await.unwrap();
    fs_err::write(bench.path("adapter/adapter_model.safetensors"), "changed").unwrap();
    let error = bench.run(&[], Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("adapter has been changed since; take it as it is with --adopt dpo"), "{error}");
    fs_err::remove_dir_all(bench.path("expander")).unwrap();
    let redo = Options { redo: true, ..Options::default() };
    bench.run(&[], redo).await.unwrap();
    assert!(bench.path("expander/weights").is_file());
    // The same adapter came out again, and so everything behind it is still good.
    assert_eq!(bench.ears.stages("stage_started"), ["dpo", "merge"]);
}

#[tokio::test]
async fn the_order_of_the_collections_does_not_matter() {
    let mut bench = Bench::new();
    bench.second_collection();
    let collections = |order: &[&str]| {
        let paths: Vec<String> = order.iter().map(|path| format!("{{path = \"{path}\"}}")).collect();
        format!("evaluation.collections=[{}]", paths.join(", "))
    };
    let arms = "evaluation.arms=[\"query\"]";
    bench.run(&[&collections(&["c", "d"]), arms], Options::default()).await.unwrap();
    let report =
        |bench: &Bench| -> Value { serde_json::from_str(&read(&bench.path("report.json"))).unwrap() };
    let before = report(&bench)["rows"][0]["collections"].clone();
    assert_ne!(before[0]["mean"], before[1]["mean"]);

    // Vectors are found by their collection: done again, the search gives the same.
    let swapped = [&collections(&["d", "c"]), arms, "evaluation.metrics=[\"ndcg@10\", \"recall@10\"]"];
    bench.run(&swapped, Options::default()).await.unwrap();
    assert!(!bench.ears.stages("stage_started").contains(&"vectors@query".into()));
    let after = report(&bench)["rows"][0]["collections"].clone();
    assert_eq!((&after[0]["name"], &after[1]["name"]), (&json!("d"), &json!("c")));
    for (one, other) in [(0, 1), (1, 0)] {
        assert_eq!(after[one]["mean"]["ndcg@10"], before[other]["mean"]["ndcg@10"]);
    }
    // Not done again, rows are still in the order of the table.
    let back = [&collections(&["c", "d"]), arms, "evaluation.metrics=[\"ndcg@10\", \"recall@10\"]"];
    bench.run(&back, Options { redo: true, ..Options::default() }).await.unwrap();
    let again = report(&bench)["rows"][0]["collections"].clone();
    assert_eq!((&again[0], &again[1]), (&after[1], &after[0]));
}

#[tokio::test]
async fn another_collection_keeps_the_vectors_of_the_first() {
    let mut bench = Bench::new();
    bench.second_collection();
    let arms = "evaluation.arms=[\"query\"]";
    bench.run(&[arms], Options::default()).await.unwrap();
    let encoded = bench.steps.encoded.load(Ordering::SeqCst);
    let both = "evaluation.collections=[{path = \"c\"}, {path = \"d\"}]";
    bench.run(&[both, arms], Options::default()).await.unwrap();
    let more = bench.steps.encoded.load(Ordering::SeqCst) - encoded;
    assert_eq!(more, 12 + 2 * 4, "the second collection's documents, and all queries");
    let mut fresh = Bench::new();
    fresh.second_collection();
    fresh.run(&[both, arms], Options::default()).await.unwrap();
    let scores = "arms/query/runs/scores.json";
    assert_eq!(read(&bench.path(scores)), read(&fresh.path(scores)));
    // Without it again the first one's are of use still.
    let encoded = bench.steps.encoded.load(Ordering::SeqCst);
    bench.run(&[arms], Options::default()).await.unwrap();
    assert!(bench.steps.encoded.load(Ordering::SeqCst) - encoded <= 2 * 4, "queries alone");
}

#[tokio::test]
async fn several_models_are_told_apart() {
    let mut bench = Bench::new();
    for (name, weights) in [("giant", "g"), ("judge", "j"), ("giant2", "other")] {
        let folder = bench.folder.join("models").join(name);
        fs_err::create_dir_all(&folder).unwrap();
        fs_err::write(folder.join("weights"), weights).unwrap();
    }
    let models = ["candidates.model=giant", "rewards.encoder=judge"];
    bench.run(&models, Options::default()).await.unwrap();
    bench.run(&models, Options::default()).await.unwrap();
    assert!(bench.ears.stages("stage_started").is_empty(), "the same run again does nothing");
    // Each stage knows which model it has from.
    let input = |name: &str, label: &str| {
        let path = bench.path("stages").join(format!("{name}.json"));
        Manifest::read(&path).unwrap().unwrap().inputs[label].clone()
    };
    let writers = ["candidates", "answers", "dpo"].map(|stage| input(stage, "expander"));
    assert!(writers[0] != writers[1] && writers[1] == writers[2], "{writers:?}");
    assert_ne!(input("scores", "encoder"), input("contrastive", "encoder"));
    for (change, stage) in [
        ("candidates.model=giant2", "candidates"),
        ("answers.model=giant2", "answers"),
        ("rewards.encoder=encoder", "scores"),
        ("expander.model=giant2", "answers"),
    ] {
        let changed: Vec<&str> = models.iter().copied().chain([change]).collect();
        let planned = bench.plan(&changed, Options::default());
        let first = planned.iter().find(|stage| stage.status != Status::Done).unwrap();
        assert_eq!(first.name, stage, "{change}: {:?}", first.status);
    }
}

#[tokio::test]
async fn texts_of_another_model_are_not_thrown_away_unasked() {
    let mut bench = Bench::new();
    let folder = bench.folder.join("models/giant");
    fs_err::create_dir_all(&folder).unwrap();
    fs_err::write(folder.join("weights"), "g").unwrap();
    bench.run(&[], Options::default()).await.unwrap();
    let before = (bench.hashes("answers"), read(&bench.path("recipe.toml")));
    let error = bench.run(&["answers.model=giant"], Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("stage answers: it was done with other inputs (expander:"), "{error}");
    assert!(error.contains("--redo"), "{error}");
    let after = (bench.hashes("answers"), read(&bench.path("recipe.toml")));
    assert_eq!(before, after, "what was refused changes nothing");
}

#[tokio::test]
async fn what_lies_in_a_folder_belongs_together_or_is_no_finished_run() {
    let mut bench = Bench::new();
    bench.run(&[], only(&[Stage::Pairs, Stage::Candidates])).await.unwrap();
    let of = |bench: &Bench, overrides: &[&str]| finished_stages(&bench.path(""), &bench.recipe(overrides));
    let error = of(&bench, &[]).unwrap_err().to_string();
    assert!(error.contains("stage answers: it is not done; do it with"), "{error}");
    bench.run(&[], Options::default()).await.unwrap();
    let stages = of(&bench, &[]).unwrap();
    assert!(stages.contains(&Stage::Contrastive) && stages.contains(&Stage::Report), "{stages:?}");
    let untrained = of(&bench, &["contrastive.enabled=false"]).unwrap();
    assert!(!untrained.contains(&Stage::Contrastive) && !untrained.contains(&Stage::Report), "{untrained:?}");
    let error = of(&bench, &["dpo.beta=0.2"]).unwrap_err().to_string();
    assert!(
        error.contains("stage dpo: it was done with other settings than the run folder's recipe has"),
        "{error}"
    );
    // What no row asks for need not be done, but is known where it is.
    let arms = ["evaluation.arms=[\"without-retriever-training\"]"];
    assert!(of(&bench, &arms).unwrap().contains(&Stage::Contrastive));
    let mut other = Bench::new();
    other.run(&arms, Options::default()).await.unwrap();
    let stages = of(&other, &arms).unwrap();
    assert!(stages.contains(&Stage::Dpo) && !stages.contains(&Stage::Contrastive), "{stages:?}");
    // Done again up to the adapter, and then no further.
    let stages = [Stage::Candidates, Stage::Scores, Stage::Preferences, Stage::Dpo, Stage::Merge];
    let fewer = ["candidates.samples=2"];
    bench.run(&fewer, Options { redo: true, ..only(&stages) }).await.unwrap();
    let error = of(&bench, &fewer).unwrap_err().to_string();
    assert!(
        error.contains("stage expansions: it was done with another expander than the one that is there"),
        "{error}"
    );
}
