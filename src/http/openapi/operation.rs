//! Puts the description of one route together. What all routes have in common (keys, problems, request ids) is added here,
//! so that the table of routes says only what is a route's own.

use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use super::schemas::Schemas;
use crate::http::{auth::Role, problem::Code};

/// JSON lines.
pub(super) const LINES: &str = "application/x-ndjson";

/// The routes that were described so far.
#[derive(Default)]
pub(super) struct Routes {
    paths: Map<String, Value>,
    pub(super) schemas: Schemas,
}

impl Routes {
    /// Begins the description of `method` on `path`; it is kept when [`Operation::done`] is called.
    pub(super) fn route(
        &mut self,
        method: &'static str,
        path: &'static str,
        tag: &str,
        id: &str,
    ) -> Operation<'_> {
        let mut value = Map::new();
        value.insert("tags".into(), json!([tag]));
        value.insert("operationId".into(), id.into());
        let operation =
            Operation { routes: self, method, path, value, parameters: Vec::new(), responses: Map::new() };
        operation.problems(&[Code::Internal, Code::Unavailable])
    }

    /// Paths, and the schemas that they name.
    pub(super) fn finish(self) -> serde_json::Result<(Value, Value)> {
        let paths = Value::Object(self.paths);
        let schemas = self.schemas.into_json(&paths)?;
        Ok((paths, schemas))
    }
}

/// One route on its way into the description.
pub(super) struct Operation<'r> {
    routes: &'r mut Routes,
    method: &'static str,
    path: &'static str,
    value: Map<String, Value>,
    parameters: Vec<Value>,
    responses: Map<String, Value>,
}

impl Operation<'_> {
    /// What it does: a line, and what there is to know beyond it.
    pub(super) fn says(mut self, summary: &str, description: &str) -> Self {
        self.value.insert("summary".into(), summary.into());
        if !description.is_empty() {
            self.value.insert("description".into(), description.into());
        }
        self
    }

    /// The role that a key needs.
    pub(super) fn role(mut self, role: Role) -> Self {
        self.value.insert("security".into(), json!([{ "key": [role.name()] }]));
        let problems = self.problems(&[Code::Unauthorized]);
        if role == Role::Read { problems } else { problems.problems(&[Code::Forbidden]) }
    }

    /// That it may take as long as anything may and no longer.
    pub(super) fn limited(self) -> Self {
        self.problems(&[Code::DeadlineExceeded])
    }

    /// A JSON body, with an example.
    pub(super) fn body<T: ToSchema>(mut self, is_required: bool, example: Value) -> Self {
        let schema = self.routes.schemas.of::<T>();
        let content = json!({ "application/json": { "schema": schema, "example": example } });
        self.value.insert("requestBody".into(), json!({ "required": is_required, "content": content }));
        let strict = self.problems(&[Code::MalformedJson, Code::BodyTooLarge, Code::InvalidRequest]);
        if is_required { strict.problems(&[Code::UnsupportedMediaType]) } else { strict }
    }

    /// A body of JSON lines.
    pub(super) fn lines(mut self, description: &str, example: &str) -> Self {
        let content = json!({ "schema": { "type": "string" }, "example": example });
        let contents = json!({ LINES: content, "application/jsonl": content });
        let body = json!({ "required": true, "description": description, "content": contents });
        self.value.insert("requestBody".into(), body);
        self.problems(&[
            Code::MalformedJson,
            Code::BodyTooLarge,
            Code::InvalidRequest,
            Code::UnsupportedMediaType,
            Code::Overloaded,
        ])
    }

    /// A part of the path, or a header.
    pub(super) fn parameter(mut self, place: &str, name: &str, description: &str, schema: Value) -> Self {
        self.parameters.push(json!({
            "name": name, "in": place, "required": place == "path", "description": description, "schema": schema,
        }));
        self.problems(&[Code::InvalidRequest])
    }

    /// What may stand behind the question mark.
    pub(super) fn query<P: IntoParams>(mut self) -> Self {
        let parameters = P::into_params(|| None);
        self.parameters
            .extend(parameters.iter().filter_map(|parameter| serde_json::to_value(parameter).ok()));
        self.problems(&[Code::InvalidRequest])
    }

    /// A JSON answer.
    pub(super) fn answer<T: ToSchema>(self, status: u16, description: &str) -> Self {
        self.answer_with::<T>(status, description, Value::Null)
    }

    /// A JSON answer with an example.
    pub(super) fn answer_with<T: ToSchema>(self, status: u16, description: &str, example: Value) -> Self {
        let mut content = json!({ "schema": self.routes.schemas.of::<T>() });
        if !example.is_null() {
            content["example"] = example;
        }
        self.content(status, description, "application/json", content)
    }

    /// A JSON answer in a form that is described elsewhere.
    pub(super) fn object(self, status: u16, description: &str) -> Self {
        let content = json!({ "schema": { "type": "object" } });
        self.content(status, description, "application/json", content)
    }

    /// An answer of another media type, as a text.
    pub(super) fn text(self, status: u16, description: &str, media_type: &str, example: &str) -> Self {
        let content = json!({ "schema": { "type": "string" }, "example": example });
        self.content(status, description, media_type, content)
    }

    /// An answer without a body.
    pub(super) fn empty(mut self, status: u16, description: &str) -> Self {
        self.responses
            .insert(status.to_string(), json!({ "description": description, "headers": request_id() }));
        self
    }

    /// An answer of server-sent events, of which each has one of these names.
    pub(super) fn events(self, description: &str, names: &[&str], example: &str) -> Self {
        let text = json!({ "type": "string" });
        let schema = json!({
            "type": "object",
            "description": "One event of the stream.",
            "properties": {
                "event": { "type": "string", "enum": names }, "data": text, "id": text, "retry": { "type": "integer" },
            },
            "required": ["event", "data"],
        });
        self.content(200, description, "text/event-stream", json!({ "schema": schema, "example": example }))
    }

    /// That a member of this answer is what another route asks for.
    pub(super) fn link(mut self, status: u16, operation: &str, parameter: &str, from: &str) -> Self {
        if let Some(response) = self.responses.get_mut(&status.to_string()) {
            response["links"][operation] =
                json!({ "operationId": operation, "parameters": { parameter: from } });
        }
        self
    }

    /// A header of an answer that was described before.
    pub(super) fn header(mut self, status: u16, name: &str, description: &str) -> Self {
        if let Some(response) = self.responses.get_mut(&status.to_string()) {
            response["headers"][name] = json!({ "description": description, "schema": { "type": "string" } });
        }
        self
    }

    /// The problems that it may answer with.
    pub(super) fn problems(mut self, codes: &[Code]) -> Self {
        for code in codes {
            let status = code.status().as_u16().to_string();
            let reference = json!({ "$ref": format!("#/components/responses/{}", response_name(*code)) });
            self.responses.entry(status).or_insert(reference);
        }
        self
    }

    /// Keeps it.
    pub(super) fn done(mut self) {
        if !self.parameters.is_empty() {
            self.value.insert("parameters".into(), self.parameters.into());
        }
        // In the order of their numbers, whatever the order in which they were described.
        let mut statuses: Vec<(String, Value)> = self.responses.into_iter().collect();
        statuses.sort_by(|a, b| a.0.cmp(&b.0));
        self.value.insert("responses".into(), Value::Object(statuses.into_iter().collect()));
        let path = self.routes.paths.entry(self.path).or_insert_with(|| json!({}));
        path[self.method] = Value::Object(self.value);
    }

    fn content(mut self, status: u16, description: &str, media_type: &str, content: Value) -> Self {
        let status = status.to_string();
        // A problem of this status was mentioned before: then the answer is one of the two.
        let before = self.responses.get(&status).filter(|response| response.get("$ref").is_some());
        let is_problem_too = before.is_some();
        let fresh = json!({ "description": "", "headers": request_id(), "content": {} });
        let mut response = match self.responses.remove(&status) {
            Some(response) if !is_problem_too => response,
            _ => fresh,
        };
        let told = response["description"].as_str().unwrap_or("").to_owned();
        let both = if told.is_empty() { description.to_owned() } else { format!("{told} {description}") };
        response["description"] = both.into();
        response["content"][media_type] = content;
        if is_problem_too {
            response["content"]["application/problem+json"] =
                json!({ "schema": self.routes.schemas.of::<crate::http::problem::ProblemBody<'_>>() });
        }
        self.responses.insert(status, response);
        self
    }
}

/// What the described answers to `code` and others of its status are called.
pub(super) fn response_name(code: Code) -> String {
    let first = Code::ALL.into_iter().find(|other| other.status() == code.status()).unwrap_or(code);
    format!("{first:?}")
}

/// The header that every answer has.
pub(super) fn request_id() -> Value {
    json!({ "x-request-id": { "$ref": "#/components/headers/RequestId" } })
}
