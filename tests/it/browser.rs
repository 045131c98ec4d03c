//! The web page in a real Chromium. Where that or its driver is missing these tests say so and test nothing; with
//! `EXPANDR_BROWSER_TESTS=required` they fail instead.

use std::time::Duration;

use axum::{body::Body, http::Request};
use expandr::http::auth::Keys;
use expandr_models::testing::Script;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    jobs::{KEY, Workshop},
    service::{Double, Setup},
    webdriver::Browser,
};

const ENTER: &str = "\u{e007}";

/// A passage that takes two seconds.
fn slow() -> Script {
    Script {
        first_token_delay: Duration::from_millis(500),
        token_delay: Duration::from_millis(50),
        natural_length: 30,
        ..Script::default()
    }
}

async fn serve(router: axum::Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router).into_future());
    format!("http://{address}")
}

/// What a list of hits shows, by id.
async fn ids(browser: &Browser, list: &str) -> Value {
    browser
        .script(&format!("return [...document.querySelectorAll('{list} .hit')].map((hit) => hit.dataset.id)"))
        .await
}

async fn assert_no_complaints(browser: &Browser) {
    let complaints = browser.complaints().await;
    // An answer with a problem's status is one that the browser logs by itself.
    let own: Vec<_> =
        complaints.iter().filter(|text| !text.contains("the server responded with a status")).collect();
    assert!(own.is_empty(), "{own:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_shows_raw_hits_the_passage_as_it_comes_and_the_answer() {
    let Some(browser) = Browser::start(1280, 900).await else { return };
    let double = Double::filled(Setup { script: slow(), ..Setup::default() }).await;
    browser.open(&double.serve().await).await;
    browser.wait_for("#server", "3 documents").await;
    browser.script("document.activeElement.blur()").await;
    browser.press("/").await;
    browser.write("#query", "apples on <b>trees</b>").await;
    browser.press(ENTER).await;
    browser.wait_for("#raw-hits", "red apples grow on trees").await;
    assert_eq!(ids(&browser, "#expanded-hits").await, json!([]), "the answer is not there yet");
    let some = browser.wait_for("#embedded", "passage").await;
    browser.wait_for("#search-status", "3 hits in").await;
    let whole = browser.text("#embedded").await;
    assert!(some.len() < whole.len(), "first `{some}`, then `{whole}`");
    assert!(whole.contains("apples on <b>trees</b>"), "a text is no markup: {whole}");
    assert_eq!(browser.text("#expansion-badge").await, "written for this query");
    assert_eq!(whole.matches("0.50").count(), 2, "the weights: {whole}");
    assert!(browser.text("#timings").await.contains("get the passage"));

    let body = json!({"query": "apples on <b>trees</b>"});
    let (_, answer) = double.search(body).await;
    let expected: Vec<_> = answer["hits"].as_array().unwrap().iter().map(|hit| hit["id"].clone()).collect();
    assert_eq!(ids(&browser, "#expanded-hits").await, json!(expected));
    let changes = "return [...document.querySelectorAll('#expanded-hits .change > :first-child')].map((c) => c.textContent)";
    let changes = browser.script(changes).await;
    let raw = ids(&browser, "#raw-hits").await;
    let was = |id: &Value| raw.as_array().unwrap().iter().position(|other| other == id).unwrap();
    let moves: Vec<String> = expected
        .iter()
        .enumerate()
        .map(|(now, id)| match was(id) {
            then if then > now => format!("▲{}", then - now),
            then if then < now => format!("▼{}", now - then),
            _ => "=".to_owned(),
        })
        .collect();
    assert_eq!(changes, json!(moves));

    browser.click("#options > summary").await;
    browser.script("document.querySelector('#expansion').value = 'own'; document.querySelector('#expansion').dispatchEvent(new Event('change'))").await;
    browser.write("#own", "whales swim in oceans").await;
    browser.click("#search-form button.primary").await;
    browser.wait_for("#search-status", "your own passage").await;
    assert_eq!(ids(&browser, "#expanded-hits").await[0], "b");
    assert_no_complaints(&browser).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_degraded_answer_and_an_error_are_said_plainly() {
    let Some(browser) = Browser::start(390, 844).await else { return };
    let script = Script { first_token_delay: Duration::from_secs(5), ..slow() };
    let double = Double::filled(Setup { script, ..Setup::default() }).await;
    browser.open(&double.serve().await).await;
    browser.click("#options > summary").await;
    browser.write("#budget", "300").await;
    browser.write("#query", &format!("green frogs{ENTER}")).await;
    browser.wait_for("#search-status", "no passage within the budget").await;
    assert_eq!(browser.text("#expansion-badge").await, "degraded: no passage within the budget");
    assert_eq!(ids(&browser, "#expanded-hits").await[0], "c");
    assert!(browser.text("#raw-hits").await.contains("The query was searched alone"));
    let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(browser.script(overflow).await, 0, "a phone has nothing to scroll sideways");

    browser.write("#filter", r#"{"like": {"kind": "animal"}}"#).await;
    browser.click("#search-form button.primary").await;
    let problem = browser.wait_for("#search-problem", "request is not valid").await;
    assert!(problem.contains("/filter") && problem.contains("like"), "{problem}");

    browser
        .script(
            "document.querySelector('#filter').value = ''; document.querySelector('#budget').value = '9000'",
        )
        .await;
    browser.click("#search-form button.primary").await;
    browser.wait_for("#raw-hits", "green frogs jump").await;
    browser.click("#stop").await;
    browser.wait_for("#search-status", "Stopped").await;
    let start = std::time::Instant::now();
    while double.expander.counts().cancelled < 2 {
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", double.expander.counts());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_no_complaints(&browser).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_added_looked_up_and_deleted() {
    let Some(browser) = Browser::start(1280, 900).await else { return };
    let write = "write-key-0123456789";
    let keys = Keys::new(&["a-read-key-0123456789".into()], &[write.into()], &[], true).unwrap();
    let double = Double::new(Setup { keys, ..Setup::default() }).await;
    browser.open(&format!("{}/#/documents", double.serve().await)).await;
    browser.write("#add-id", "some/id").await;
    browser.write("#add-text", "a text with <i>marks</i>").await;
    browser.write("#add-metadata", r#"{"year": 2001}"#).await;
    browser.click("#add-form button").await;
    let problem = browser.wait_for("#add-result", "a valid key is needed").await;
    assert!(problem.contains("Type a key into the field at the top"), "{problem}");
    browser.write("#key", &format!("{write}{ENTER}")).await;
    browser.wait_for("#key-note", "in use").await;
    browser.click("#add-form button").await;
    browser.wait_for("#add-result", "some/id is stored").await;
    browser.write("#look-up-id", &format!("some/id{ENTER}")).await;
    let shown = browser.wait_for("#look-up-result", "a text with <i>marks</i>").await;
    assert!(shown.contains("2001"), "{shown}");
    browser.click("#look-up-result .danger").await;
    browser.wait_for("#look-up-result", "Really delete some/id?").await;
    browser.click("#look-up-result .danger").await;
    browser.wait_for("#look-up-result", "some/id is deleted").await;
    assert_eq!(double.send("GET", "/documents/some%2Fid", None, Some(write)).await.0, 404);
    assert_eq!(browser.script("return localStorage.length + document.cookie.length").await, 0);
    assert_eq!(browser.script("return sessionStorage.getItem('expandr-key')").await, write);
    assert_no_complaints(&browser).await;
}

/// Work that tells three steps, as a training does, before it fails.
const TRAINS: &str = r#"
evaluate_bundles() {
    echo '{"event":"stage_started","stage":"training","why":"asked for"}'
    for step in 1 2 3; do
        echo '{"event":"progress","stage":"training","unit":"steps","done":'$step',"total":4,"eta_seconds":9.5,"figures":{"loss":0.'$((8 - step))',"reward_margin":0.'$step'}}'
        sleep 1.1
    done
    echo 'no space left' >&2
    exit 1
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_started_and_followed_to_their_end() {
    let Some(browser) = Browser::start(1280, 900).await else { return };
    let workshop = Workshop::open().await;
    fs_err::write(workshop.folder.path().join("behaviour.sh"), TRAINS).unwrap();
    let url = serve(workshop.router.clone()).await;
    browser.open(&format!("{url}/#/jobs")).await;
    browser.wait_for("#jobs-list", "a valid key is needed").await;
    browser.write("#key", &format!("{KEY}{ENTER}")).await;
    browser.wait_for("#jobs-list", "There are no jobs yet").await;
    browser.click("#start-form button.primary").await;
    browser.wait_for("#job-title", "succeeded").await;
    assert!(browser.text("#job-title").await.starts_with("snapshot"));
    assert!(browser.text("#job-events").await.contains("succeeded"));

    browser.click("#view-job a").await;
    browser.wait_for("#jobs-list", "snapshot").await;
    browser.script("document.querySelector('#job-kind').value = 'evaluate'; document.querySelector('#job-kind').dispatchEvent(new Event('change'))").await;
    browser.click("#start-form button.primary").await;
    let problem = browser.wait_for("#start-result", "the request is not valid").await;
    assert!(problem.contains("collections"), "{problem}");
    browser.write("#job-fields [name=collections]", "collection").await;
    browser.click("#start-form button.primary").await;
    browser.wait_for("#job-progress", "2 of 4 steps").await;
    assert_eq!(browser.script("return document.querySelector('#job-progress progress').value").await, 0.5);
    let curves = browser.wait_for("#job-curves", "loss").await;
    assert!(curves.contains("reward margin"), "{curves}");
    browser.wait_for("#job-title", "failed").await;
    let label = "return document.querySelector('#job-curves svg').getAttribute('aria-label')";
    let label = browser.script(label).await;
    assert!(label.as_str().unwrap().ends_with("loss: 0.5000 at step 3 of 4"), "{label}");
    let points =
        "return document.querySelector('#job-curves polyline').getAttribute('points').split(' ').length";
    assert_eq!(browser.script(points).await, 3);
    assert!(browser.text("#job-problem").await.contains("failed"));
    browser.click("#job-resume").await;
    let runs = "[...document.querySelectorAll('#job-events li')].filter((li) => li.innerText.endsWith('running')).length";
    browser.until(&format!("{runs} === 2")).await;
    browser.click("#job-cancel").await;
    browser.wait_for("#job-title", "cancelled").await;
    assert_no_complaints(&browser).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_are_listed_and_a_rollback_without_a_previous_one_is_not_offered() {
    let Some(browser) = Browser::start(390, 844).await else { return };
    let workshop = Workshop::open().await;
    let url = serve(workshop.router.clone()).await;
    browser.open(&format!("{url}/#/bundles")).await;
    browser.write("#key", &format!("{KEY}{ENTER}")).await;
    let listed = browser.wait_for("#bundles-list", "active").await;
    assert!(listed.contains("double") && listed.contains("scripted"), "{listed}");
    assert_eq!(browser.script("return document.querySelector('#rollback').disabled").await, true);
    let without = Double::new(Setup::default()).await;
    browser.open(&format!("{}/#/bundles", without.serve().await)).await;
    let problem = browser.wait_for("#bundles-list", "--admin-keys").await;
    assert!(problem.contains("It has no admin key"), "{problem}");
    assert_no_complaints(&browser).await;
}

#[tokio::test]
async fn the_page_needs_no_key_and_holds_no_data() {
    let keys = Keys::new(&["a-read-key-0123456789".into()], &[], &[], false).unwrap();
    let double = Double::new(Setup { keys, ..Setup::default() }).await;
    for path in ["/", "/assets/app.js", "/assets/style.css"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = double.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let policy = response.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let etag = response.headers()["etag"].clone();
        let request = Request::get(path).header("if-none-match", etag).body(Body::empty()).unwrap();
        let response = double.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 304, "{path}");
    }
    let (status, problem) = double.send("GET", "/assets/other.js", None, None).await;
    assert_eq!((status, &problem["code"]), (404, &json!("not_found")));
    assert_eq!(double.search(json!({"query": "q"})).await.0, 401);
}
