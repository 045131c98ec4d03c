use futures::stream;

use super::*;

const PAIR: &str = "{\"query\":\"q\",\"positive\":\"p\"}\n";

type Chunk = Result<Bytes, std::io::Error>;

fn body(text: &str) -> impl Stream<Item = Chunk> + Unpin + use<> {
    stream::iter(vec![Ok(Bytes::copy_from_slice(text.as_bytes()))])
}

fn open(folder: &Path) -> Arc<Datasets> {
    Arc::new(Datasets::open(folder, 1 << 20).unwrap())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn content(datasets: &Datasets, name: &str) -> String {
    fs_err::read_to_string(datasets.path(name).unwrap()).unwrap()
}

#[tokio::test]
async fn a_dataset_is_there_after_a_restart_and_is_replaced_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let datasets = open(folder.path());
    let (dataset, replaced) = datasets.put("mine", body(PAIR)).await.unwrap();
    assert_eq!((dataset.pairs, replaced), (1, false));
    let copy = folder.path().parent().unwrap().join(format!("{}.copy", uuid::Uuid::new_v4()));
    datasets.copy_to("mine", &copy).unwrap();
    let datasets = open(folder.path());
    assert_eq!(datasets.list(), [dataset]);
    assert_eq!(content(&datasets, "mine"), PAIR);
    let (other, replaced) = datasets.put("mine", body(&PAIR.repeat(3))).await.unwrap();
    assert_eq!((other.pairs, replaced), (3, true));
    assert_eq!(content(&datasets, "mine"), PAIR.repeat(3));
    assert_eq!(names(folder.path()).len(), 2, "the old lines are gone: {:?}", names(folder.path()));
    assert_eq!(fs_err::read_to_string(&copy).unwrap(), PAIR, "what was copied stays as it was");
    fs_err::remove_file(copy).unwrap();
    // The same lines again: their file is the same one, and must not be removed as the old one.
    assert!(datasets.put("mine", body(&PAIR.repeat(3))).await.unwrap().1);
    assert_eq!(content(&datasets, "mine"), PAIR.repeat(3));
    datasets.delete("mine").unwrap();
    assert_eq!(names(folder.path()), [""; 0]);
    assert_eq!(datasets.path("mine").unwrap_err().code, Code::NotFound);
    assert_eq!(datasets.delete("mine").unwrap_err().code, Code::NotFound);
}

#[tokio::test]
async fn nothing_of_a_refused_upload_stays() {
    let folder = tempfile::tempdir().unwrap();
    let datasets = open(folder.path());
    datasets.put("mine", body(PAIR)).await.unwrap();
    let before = names(folder.path());
    let bad = datasets.put("mine", body(&format!("{PAIR}{{}}\n"))).await.unwrap_err();
    assert!(bad.code == Code::InvalidRequest && bad.detail.contains("line 2:"), "{bad:?}");
    let large = datasets.put("mine", body(&PAIR.repeat(50_000))).await.unwrap_err();
    assert_eq!(large.code, Code::BodyTooLarge);
    let broken: Vec<Chunk> =
        vec![Ok(Bytes::from_static(PAIR.as_bytes())), Err(std::io::Error::other("the client has gone"))];
    let broken = datasets.put("mine", stream::iter(broken)).await.unwrap_err();
    assert!(broken.detail.contains("the client has gone"), "{broken:?}");
    // A request that is dropped in the middle.
    let endless = stream::iter(vec![Chunk::Ok(Bytes::from_static(PAIR.as_bytes()))]).chain(stream::pending());
    let dropped =
        tokio::time::timeout(std::time::Duration::from_millis(50), datasets.put("mine", Box::pin(endless)));
    assert!(dropped.await.is_err());
    assert_eq!(names(folder.path()), before);
    assert_eq!(content(&datasets, "mine"), PAIR);
}

#[tokio::test]
async fn what_a_kill_left_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).put("mine", body(PAIR)).await.unwrap();
    let before = names(folder.path());
    // Killed while receiving; between lines and description of a first upload; and of a second one.
    for name in ["mine.1.partial", "new.0123456789abcdef.ndjson", "mine.0123456789abcdef.ndjson"] {
        fs_err::write(folder.path().join(name), PAIR).unwrap();
    }
    let datasets = open(folder.path());
    assert_eq!(names(folder.path()), before);
    assert_eq!((datasets.list().len(), content(&datasets, "mine").as_str()), (1, PAIR));
}

#[tokio::test]
async fn names_can_not_leave_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let datasets = open(&folder.path().join("datasets"));
    for name in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc/x",
        "-a",
        "_a",
        "a.json",
        "a\0",
        "a\n",
        "ä",
        &"x".repeat(65),
    ] {
        let problem = datasets.put(name, body(PAIR)).await.unwrap_err();
        assert_eq!(problem.code, Code::InvalidRequest, "{name:?}");
        assert_eq!(datasets.path(name).unwrap_err().code, Code::NotFound, "{name:?}");
        assert_eq!(datasets.delete(name).unwrap_err().code, Code::NotFound, "{name:?}");
    }
    assert_eq!(names(folder.path()), ["datasets"]);
    assert_eq!(names(&folder.path().join("datasets")), [""; 0]);
    datasets.put("a-B_9", body(PAIR)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_concurrent_uploads_one_stays_whole() {
    let folder = tempfile::tempdir().unwrap();
    let datasets = open(folder.path());
    for _ in 0..10 {
        let uploads = (1..=8usize).map(|pairs| {
            let datasets = datasets.clone();
            tokio::spawn(async move {
                let lines = PAIR.repeat(pairs);
                let chunks = lines
                    .into_bytes()
                    .chunks(17)
                    .map(|c| Chunk::Ok(Bytes::copy_from_slice(c)))
                    .collect::<Vec<_>>();
                let slowly = stream::iter(chunks).then(|chunk| async {
                    tokio::task::yield_now().await;
                    chunk
                });
                datasets.put("mine", Box::pin(slowly)).await.unwrap().0
            })
        });
        let written: Vec<Dataset> =
            futures::future::join_all(uploads).await.into_iter().map(Result::unwrap).collect();
        let stays = datasets.get("mine").unwrap();
        assert!(written.contains(&stays), "{stays:?}");
        assert_eq!(content(&datasets, "mine"), PAIR.repeat(stays.pairs));
        assert_eq!(names(folder.path()).len(), 2, "{:?}", names(folder.path()));
        assert_eq!(open(folder.path()).list(), [stays], "disk and memory agree");
    }
}
