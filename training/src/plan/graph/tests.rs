//! What rows share, and what they don't.

use serde_json::json;

use super::*;
use crate::plan::ARMS;

fn recipe(overrides: &[&str]) -> Recipe {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    let text =
        "[[data.sources]]\nname = \"a\"\npath = \"a.jsonl\"\n[[evaluation.collections]]\npath = \"c\"\n";
    Recipe::parse(text, &overrides).unwrap()
}

fn all(recipe: &Recipe) -> Graph {
    Graph::plan(recipe, &ARMS.iter().collect::<Vec<_>>()).unwrap()
}

fn named(recipe: &Recipe, names: &[&str]) -> Graph {
    let arms: Vec<&'static Arm> = names.iter().map(|name| Arm::named(name).unwrap()).collect();
    Graph::plan(recipe, &arms).unwrap()
}

fn needed(graph: &Graph) -> Vec<String> {
    graph.needed().map(|(_, node)| node.name()).collect()
}

fn counts(graph: &Graph) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for (_, node) in graph.needed() {
        *counts.entry(node.stage().name()).or_default() += 1;
    }
    counts
}

#[test]
fn the_ablations_share_what_they_have_in_common() {
    let graph = all(&recipe(&[]));
    let expected = [
        ("pairs", 1),
        ("candidates", 1),
        ("answers", 1),
        ("scores", 1),
        ("preferences", 3),
        ("dpo", 3),
        ("merge", 3),
        // The tuned model, the untuned one, and those of the two reward ablations.
        ("expansions", 4),
        ("test-expansions", 4),
        // The same four, queries alone, and repetitions.
        ("examples", 6),
        ("contrastive", 6),
        ("vectors", 7),
        ("evaluation", 10),
        ("report", 1),
    ];
    assert_eq!(counts(&graph), expected.into_iter().collect());
    let of = |name: &str| graph.nodes.iter().find(|node| node.name() == name).unwrap();
    let tuned = ["expandr", "without-retriever-training", "repetition", "repetition-untrained"];
    assert_eq!(of("merge").arms, tuned);
    let untrained = ["query", "without-retriever-training", "without-training", "repetition-untrained"];
    assert_eq!(of("vectors@query").arms, untrained);
    assert_eq!(of("pairs").arms.len(), 8, "all rows but the two in which nothing is trained");
}

#[test]
fn nothing_comes_before_what_it_reads_and_no_two_stages_write_the_same() {
    let graph = all(&recipe(&["warm_up.enabled=true", "encoder.layers=2"]));
    let mut places = std::collections::BTreeSet::new();
    for (id, node) in graph.nodes.iter().enumerate() {
        assert!(node.work.inputs().iter().all(|input| *input < id), "{}", node.name());
        for output in node.stage().outputs() {
            assert!(places.insert(node.home.join(output)), "{}", node.name());
        }
    }
    assert!(places.contains(&PathBuf::from("arms/ft/encoder")));
}

#[test]
fn where_files_lie_does_not_depend_on_the_rows_asked_for() {
    let recipe = recipe(&["gate.enabled=true"]);
    let graph = all(&recipe);
    let places = |graph: &Graph| -> BTreeMap<String, PathBuf> {
        graph.needed().map(|(_, node)| (node.key.clone(), node.home.clone())).collect()
    };
    let all_places = places(&graph);
    for arm in ARMS {
        for (key, home) in places(&named(&recipe, &[arm.name])) {
            let is_report = home.as_os_str().is_empty() && !all_places.contains_key(&key);
            assert!(is_report || all_places[&key] == home, "{}", arm.name);
        }
    }
}

#[test]
fn rows_need_no_more_than_their_own_stages() {
    let recipe = recipe(&[]);
    assert_eq!(needed(&named(&recipe, &["query"])), ["vectors@query", "evaluation@query", "report"]);
    assert_eq!(
        needed(&named(&recipe, &["ft"])),
        ["pairs", "examples@ft", "contrastive@ft", "vectors@ft", "evaluation@ft", "report"]
    );
    let expandr = [
        "pairs",
        "candidates",
        "answers",
        "scores",
        "preferences",
        "dpo",
        "merge",
        "expansions",
        "examples",
        "contrastive",
        "vectors",
        "test-expansions",
        "evaluation",
        "report",
    ];
    assert_eq!(needed(&named(&recipe, &["expandr"])), expandr);
}

#[test]
fn without_collections_only_training_is_left() {
    let mut recipe = recipe(&[]);
    recipe.evaluation.collections.clear();
    let graph = named(&recipe, &["query", "expandr"]);
    assert_eq!(needed(&graph).last().unwrap(), "contrastive");
    assert!(graph.arms.iter().all(|arm| arm.evaluation.is_none()));
    assert!(Graph::plan(&recipe, &[]).is_err());
}

#[test]
fn a_warm_up_comes_before_everything() {
    let graph = named(&recipe(&["warm_up.enabled=true"]), &["expandr"]);
    assert_eq!(needed(&graph)[..4], ["pairs", "warm-up", "warm-expander", "candidates"]);
    let stronger = named(&recipe(&["warm_up.enabled=true", "candidates.model=teacher"]), &["expandr"]);
    let candidates = stronger.nodes.iter().find(|node| node.stage() == Stage::Candidates).unwrap();
    assert_eq!(candidates.external[0].source, Source::Expander("teacher".into()));
    assert_eq!(candidates.work.inputs(), [0]);
}

#[test]
fn a_setting_changes_its_stage_and_what_follows_and_nothing_else() {
    let changed = |set: &str| -> Vec<String> {
        let before = named(&recipe(&[]), &["expandr"]);
        let after = named(&recipe(&[set]), &["expandr"]);
        let pairs = before.needed().zip(after.needed());
        pairs.filter(|((_, a), (_, b))| a.key != b.key).map(|((_, a), _)| a.name()).collect()
    };
    assert_eq!(changed("evaluation.query_weight=0.3"), ["evaluation", "report"]);
    let joint = changed("expansions.joint_encoding=true");
    assert_eq!(
        joint,
        ["examples", "contrastive", "vectors", "evaluation", "report"],
        "what is written stays"
    );
    assert_eq!(changed("contrastive.learning_rate=1"), ["contrastive", "vectors", "evaluation", "report"]);
    assert_eq!(changed("rewards.threshold=0.5")[0], "preferences");
    assert_eq!(changed("answers.max_tokens=9")[..2], ["answers", "scores"]);
    assert!(changed("machine.concurrency=9").is_empty());
    assert!(changed("contrastive.chunk=9").is_empty());
    assert_eq!(changed("contrastive.interpolation=0.5")[0], "contrastive");
    assert_eq!(changed("contrastive.soup=2")[0], "contrastive");
    assert_eq!(changed("contrastive.expansion_dropout=0.5")[0], "contrastive");
    assert!(changed("contrastive.lora_rank=9").is_empty(), "full training has no adapters");
    assert_eq!(changed("seed=1").len(), 14);
}

#[test]
fn a_weight_chosen_on_dev_data_has_a_stage_for_each_row_that_averages() {
    let graph = all(&recipe(&["evaluation.query_weight=dev"]));
    let found = counts(&graph);
    assert_eq!((found["weight"], found["evaluation"]), (8, 10));
    // The two rows with an untrained encoder and ExpandR's texts share the expansions of the training queries.
    assert_eq!((found["expansions"], found["examples"]), (4, 6));
    assert!(
        !counts(&named(&recipe(&["evaluation.query_weight=dev"]), &["query", "ft"])).contains_key("weight")
    );
}

#[test]
fn a_gate_is_learnt_for_expandr_and_adds_a_row() {
    assert!(!counts(&all(&recipe(&[]))).contains_key("gate"));
    let gated = ["gate.enabled=true", "evaluation.query_weight=dev"];
    let graph = named(&recipe(&gated), &["query", "expandr"]);
    let rows: Vec<&str> = graph.arms.iter().map(|planned| planned.arm.name).collect();
    assert_eq!(rows, ["expandr", "query", "auto"]);
    let found = counts(&graph);
    assert_eq!((found["gate"], found["weight"], found["evaluation"], found["contrastive"]), (1, 1, 3, 1));
    let of = |name: &str| graph.nodes.iter().find(|node| node.name() == name).unwrap();
    assert!(of("gate").home.as_os_str().is_empty(), "beside the models that it belongs to");
    let read: Vec<String> = of("gate").work.inputs().iter().map(|id| graph.nodes[*id].name()).collect();
    assert_eq!(read, ["examples", "weight", "merge", "contrastive"]);
    let read: Vec<String> =
        of("evaluation@auto").work.inputs().iter().map(|id| graph.nodes[*id].name()).collect();
    assert_eq!(read, ["vectors", "test-expansions", "weight", "gate", "contrastive"]);
    assert!(!counts(&named(&recipe(&gated), &["query"])).contains_key("gate"));
    let mut training = recipe(&gated);
    training.evaluation.collections.clear();
    assert_eq!(needed(&named(&training, &["expandr"])).last().unwrap(), "gate");
}

#[test]
fn mined_negatives_are_found_once_for_all_rows() {
    let graph = all(&recipe(&["contrastive.mined_negatives=2", "encoder.layers=2"]));
    assert_eq!(counts(&graph)["negatives"], 1);
    let node = graph.nodes.iter().find(|node| node.stage() == Stage::Negatives).unwrap();
    assert_eq!((node.arms.len(), node.home.as_os_str().is_empty()), (6, true));
}

#[test]
fn equal_rewards_are_one_stage() {
    let graph = named(&recipe(&["rewards.self_reward=false"]), &["expandr", "without-self-reward"]);
    assert_eq!(counts(&graph)["evaluation"], 1);
    assert_eq!(graph.arms.len(), 2);
}

#[test]
fn json_is_the_same_whatever_the_order_of_its_members() {
    let a = json!({"b": [1, {"y": 1.5, "x": "\"q\""}], "a": null});
    assert_eq!(canonical(&a), "{\"a\":null,\"b\":[1,{\"x\":\"\\\"q\\\"\",\"y\":1.5}]}");
}
