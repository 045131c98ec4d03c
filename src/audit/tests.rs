use serde_json::json;

use super::*;

const KEY: &str = "an-admin-key-\"with\"-quotes-0123456789";

fn request(action: &str, arguments: Value, status: u16) -> Entry {
    Entry {
        time: clock::now(),
        actor: Actor::Client,
        key_id: Some("01234567".to_owned()),
        action: action.to_owned(),
        arguments,
        outcome: Outcome::Done,
        status: Some(status),
        detail: None,
        request_id: Some("r-1".to_owned()),
        took_ms: Some(1.5),
        refusals_left_out: 0,
    }
}

fn open(folder: &Path) -> Audit {
    Audit::open(&folder.join("audit.ndjson"), 1 << 20).unwrap()
}

#[tokio::test]
async fn entries_come_back_newest_first_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let audit = open(folder.path());
    let first = request("POST /admin/jobs", json!({"body": {"kind": "reindex"}}), 202);
    audit.record_request(first.clone(), None).await;
    audit.record("job.finished", json!({"job": "j-1"}), Err("out of memory"));
    drop(audit);
    let last = open(folder.path()).last(10).unwrap();
    assert_eq!((last.len(), &last[1]), (2, &first));
    assert_eq!((last[0].actor, last[0].outcome), (Actor::Server, Outcome::Failed));
    assert_eq!(last[0].detail.as_deref(), Some("out of memory"));
    assert_eq!(open(folder.path()).last(1).unwrap().len(), 1);
}

#[tokio::test]
async fn a_key_is_never_written_wherever_the_client_put_it() {
    let folder = tempfile::tempdir().unwrap();
    let audit = open(folder.path());
    let percent: String = KEY.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut in_the_id = request("POST /admin/jobs", json!({}), 202);
    in_the_id.request_id = Some(KEY.to_owned());
    let mut in_the_detail = request("POST /admin/jobs", json!({}), 422);
    in_the_detail.detail = Some(format!("unknown field `{KEY}`"));
    for entry in [
        request(&format!("GET /admin/datasets/{KEY}"), json!({}), 404),
        request(&format!("GET /admin/datasets/{percent}"), json!({}), 404),
        request("POST /admin/jobs", json!({"query": {"a": KEY}}), 202),
        request("POST /admin/jobs", json!({"body": {"deep": [{"x": format!("Bearer {KEY}")}]}}), 202),
        request("POST /admin/jobs", json!({"body": {KEY: 1}}), 202),
        in_the_id,
        in_the_detail,
    ] {
        audit.record_request(entry, Some(KEY)).await;
    }
    let text = fs_err::read_to_string(folder.path().join("audit.ndjson")).unwrap();
    assert_eq!(text.lines().count(), 7, "all are written");
    assert!(!text.contains("0123456789") && !text.contains(&percent[..30]), "{text}");
    assert!(text.contains("01234567"), "their key ids are");
}

#[tokio::test]
async fn refusals_are_written_until_they_are_a_flood() {
    let folder = tempfile::tempdir().unwrap();
    let audit = open(folder.path());
    for _ in 0..200 {
        audit.record_request(request("POST /admin/jobs", json!({}), 401), None).await;
    }
    audit.record_request(request("POST /admin/jobs", json!({}), 202), None).await;
    let last = audit.last(1000).unwrap();
    assert!((20..30).contains(&last.len()), "{}", last.len());
    assert_eq!(last[0].status, Some(202), "others are written all the same");
}

#[test]
fn a_disk_that_refuses_is_no_reason_to_panic() {
    let folder = tempfile::tempdir().unwrap();
    let audit = Audit::open(&folder.path().join("audit.ndjson"), 10).unwrap();
    audit.record("one", json!({}), Ok(()));
    drop(folder); // the next line wants a new file, in a folder that is gone
    audit.record("two", json!({}), Ok(()));
}
