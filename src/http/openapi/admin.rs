//! The routes of operators: jobs, bundles, datasets, the audit.

use serde_json::json;

use super::operation::{LINES, Routes};
use crate::{
    bundles as registered,
    datasets::Dataset,
    http::{
        audit::{AuditAnswer, LastParameters},
        auth::Role,
        bundles::{BundleList, GoesOn, ImportRequest, ImportedBundle, Wait},
        datasets::{DatasetList, PutAnswer},
        jobs::{JobList, ListParameters},
        problem::Code,
    },
    jobs::{JobView, request::JobRequest},
};

/// Describes them.
pub(super) fn all(routes: &mut Routes) {
    jobs(routes);
    bundles(routes);
    datasets(routes);
}

fn jobs(routes: &mut Routes) {
    let id = || json!({ "type": "string", "minLength": 1 });
    routes
        .route("post", "/admin/jobs", "Jobs", "startJob")
        .says("Start a job", "Of `recipe` and `recipe_toml` a retraining needs one.")
        .role(Role::Admin)
        .parameter(
            "header",
            "idempotency-key",
            "Makes it safe to send a request again: a known key gives the job of then.",
            json!({ "type": "string", "minLength": 1, "maxLength": 200 }),
        )
        .body::<JobRequest>(
            true,
            json!({"kind": "retrain", "recipe": "small", "promotion": {"when": "not_worse"}}),
        )
        .answer::<JobView<'_>>(202, "The job waits for its turn.")
        .header(202, "location", "Where to ask for it.")
        .link(202, "getJob", "id", "$response.body#/id")
        .link(202, "followJob", "id", "$response.body#/id")
        .link(202, "cancelJob", "id", "$response.body#/id")
        .link(202, "resumeJob", "id", "$response.body#/id")
        .problems(&[Code::NotFound, Code::Conflict, Code::Overloaded])
        .limited()
        .done();
    routes
        .route("get", "/admin/jobs", "Jobs", "listJobs")
        .says("List jobs", "")
        .role(Role::Admin)
        .query::<ListParameters>()
        .answer::<JobList<'_>>(200, "Newest first.")
        .problems(&[Code::NotFound, Code::MalformedJson, Code::BodyTooLarge])
        .limited()
        .done();
    routes
        .route("get", "/admin/jobs/{id}", "Jobs", "getJob")
        .says("Ask for a job", "")
        .role(Role::Admin)
        .parameter("path", "id", "The job's id.", id())
        .answer::<JobView<'_>>(200, "How it stands.")
        .problems(&[Code::NotFound, Code::MalformedJson, Code::BodyTooLarge])
        .limited()
        .done();
    routes
        .route("get", "/admin/jobs/{id}/events", "Jobs", "followJob")
        .says("Follow a job", "The stream ends with the job.")
        .role(Role::Admin)
        .parameter("path", "id", "The job's id.", id())
        .parameter(
            "header",
            "last-event-id",
            "The last event that the client has seen; the stream goes on behind it.",
            json!({ "type": "string", "pattern": "^[0-9]{1,19}$" }),
        )
        .events(
            "As server-sent events: `status` (with the whole job under `job`), `stage`, `progress`, `note`.",
            &["status", "stage", "progress", "note"],
            "id: 1\nevent: stage\ndata: {\"id\":1,\"event\":\"stage\",\"stage\":\"train\"}\n\n",
        )
        .problems(&[Code::NotFound, Code::MalformedJson, Code::BodyTooLarge])
        .limited()
        .done();
    for (path, name, summary) in [
        ("/admin/jobs/{id}/cancel", "cancelJob", "Stop a job"),
        ("/admin/jobs/{id}/resume", "resumeJob", "Let a job that failed or was stopped go on where it was"),
    ] {
        routes
            .route("post", path, "Jobs", name)
            .says(summary, "")
            .role(Role::Admin)
            .parameter("path", "id", "The job's id.", id())
            .answer::<JobView<'_>>(202, "How it stands.")
            .header(202, "location", "Where to ask for it.")
            .problems(&[
                Code::NotFound,
                Code::Conflict,
                Code::Overloaded,
                Code::MalformedJson,
                Code::BodyTooLarge,
            ])
            .limited()
            .done();
    }
}

fn bundles(routes: &mut Routes) {
    routes
        .route("get", "/admin/bundles", "Bundles", "listBundles")
        .says("List the registered bundles", "")
        .role(Role::Admin)
        .answer::<BundleList>(200, "All of them, and which one answers.")
        .problems(&[Code::MalformedJson, Code::BodyTooLarge])
        .limited()
        .done();
    let activation = |routes: &mut Routes, path: &'static str, name: &str, summary: &str| {
        let operation = routes
            .route("post", path, "Bundles", name)
            .says(summary, "Searches go on meanwhile; the change itself takes a moment in which writes wait.")
            .role(Role::Admin)
            .body::<Wait>(false, json!({ "wait_ms": 10_000 }));
        let operation = match path.contains("{id}") {
            true => operation.parameter(
                "path",
                "id",
                "The bundle's id.",
                json!({ "type": "string", "minLength": 1 }),
            ),
            false => operation,
        };
        operation
            .answer::<registered::Activation>(200, "It is done.")
            .answer::<GoesOn>(202, "It takes longer than `wait_ms`, and goes on.")
            .header(202, "location", "Where to see how far it is.")
            .problems(&[Code::NotFound, Code::Conflict, Code::Overloaded])
            .limited()
            .done();
    };
    activation(
        routes,
        "/admin/bundles/{id}/activate",
        "activateBundle",
        "Make a bundle the one that answers",
    );
    activation(routes, "/admin/bundles/rollback", "rollBack", "Go back to the bundle before");
    routes
        .route("post", "/admin/bundles/import", "Bundles", "importBundle")
        .says("Register a bundle", "One that is there already keeps its name.")
        .role(Role::Admin)
        .body::<ImportRequest>(true, json!({ "path": "/srv/bundles/small", "name": "small" }))
        .answer::<ImportedBundle>(201, "It is registered, and not yet active.")
        .header(201, "location", "Where it is listed.")
        .link(201, "activateBundle", "id", "$response.body#/id")
        .problems(&[Code::NotFound, Code::Conflict])
        .limited()
        .done();
}

fn datasets(routes: &mut Routes) {
    let name = || json!({ "type": "string", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$" });
    let description = "The dataset's name.";
    routes
        .route("get", "/admin/datasets", "Datasets", "listDatasets")
        .says("List the datasets", "")
        .role(Role::Admin)
        .answer::<DatasetList>(200, "By name.")
        .problems(&[Code::MalformedJson, Code::BodyTooLarge])
        .limited()
        .done();
    routes
        .route("put", "/admin/datasets/{name}", "Datasets", "putDataset")
        .says("Store a dataset", "As a whole or not at all.")
        .role(Role::Admin)
        .parameter("path", "name", description, name())
        .lines(
            "A pair a line: `query`, `positive`, and if wanted `negatives`.",
            "{\"query\": \"bone health\", \"positive\": \"Vitamin D helps …\", \"negatives\": [\"Red apples …\"]}\n",
        )
        .answer::<PutAnswer>(200, "It replaced one of this name.")
        .answer::<PutAnswer>(201, "It is new.")
        .link(201, "getDataset", "name", "$response.body#/name")
        .link(201, "deleteDataset", "name", "$response.body#/name")
        .done();
    routes
        .route("get", "/admin/datasets/{name}", "Datasets", "getDataset")
        .says("Ask for a dataset", "With `accept: application/x-ndjson` its lines.")
        .role(Role::Admin)
        .parameter("path", "name", description, name())
        .answer::<Dataset>(200, "What is known of it; or its lines.")
        .text(200, "", LINES, "{\"query\": \"bone health\", \"positive\": \"Vitamin D helps …\"}\n")
        .problems(&[Code::NotFound, Code::MalformedJson, Code::BodyTooLarge])
        .done();
    routes
        .route("delete", "/admin/datasets/{name}", "Datasets", "deleteDataset")
        .says("Delete a dataset", "")
        .role(Role::Admin)
        .parameter("path", "name", description, name())
        .empty(204, "It is gone.")
        .problems(&[Code::NotFound, Code::MalformedJson, Code::BodyTooLarge])
        .done();
    routes
        .route("get", "/admin/audit", "Audit", "audit")
        .says("Who administered the service", "")
        .role(Role::Admin)
        .query::<LastParameters>()
        .answer::<AuditAnswer>(200, "Newest first.")
        .problems(&[Code::MalformedJson, Code::BodyTooLarge])
        .limited()
        .done();
}
