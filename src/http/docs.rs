//! `GET /docs`: the description of `/openapi.json` as a page. It is made here, as a whole, and needs nothing from elsewhere:
//! no script, no font, no other server.

use std::sync::LazyLock;

use axum::{
    body::Bytes,
    http::header,
    response::{IntoResponse, Response},
};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::{Map, Value};

use super::openapi::document;

static PAGE: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(whole(document()).into_string()));

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c;background:#fff}\
h1,h2,h3{line-height:1.2}h2{margin-top:3rem;border-bottom:1px solid #ccc}code,pre{font:13px/1.45 ui-monospace,monospace;background:#f4f4f2}\
pre{padding:.7rem;overflow:auto}table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;\
border-bottom:1px solid #e4e4e4}td:first-child{white-space:nowrap}details{border:1px solid #ddd;border-radius:4px;padding:.4rem .8rem;margin:.5rem 0}\
summary{cursor:pointer}.method{display:inline-block;min-width:4.5rem;font-weight:600;text-transform:uppercase}.faint{color:#666}\
@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#181818}code,pre{background:#262626}a{color:#8ab4f8}h2,details,th,td{border-color:#444}\
.faint{color:#aaa}}";

/// No script and nothing from elsewhere may run here, whatever the page says.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, PAGE.clone()).into_response()
}

fn whole(document: &Value) -> Markup {
    let info = &document["info"];
    let key = &document["components"]["securitySchemes"]["key"];
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { (text(&info["title"])) " " (text(&info["version"])) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (text(&info["title"])) " " span.faint { (text(&info["version"])) } }
                @for paragraph in text(&info["description"]).split("\n\n") { p { (told(paragraph)) } }
                p { "For programs: " a href="openapi.json" { "openapi.json" } " (OpenAPI " (text(&document["openapi"])) ")." }
                h2 { "Keys" }
                p { code { "Authorization: Bearer <key>" } ". " (told(text(&key["description"]))) }
                @for tag in items(&document["tags"]) { (section(document, tag)) }
                h2 { "Problems" }
                table {
                    tr { th { "Answer" } th { "Codes" } }
                    @for (name, response) in members(&document["components"]["responses"]) {
                        tr id={ "response-" (name) } { td { (name) } td { (told(text(&response["description"]))) } }
                    }
                }
                h2 { "Schemas" }
                @for (name, schema) in members(&document["components"]["schemas"]) {
                    h3 id={ "schema-" (name) } { (name) }
                    (described(schema))
                }
            }
        }
    }
}

fn section(document: &Value, tag: &Value) -> Markup {
    html! {
        h2 { (text(&tag["name"])) }
        p { (told(text(&tag["description"]))) }
        @for (path, item) in members(&document["paths"]) {
            @for (method, operation) in members(item) {
                @if operation["tags"][0] == tag["name"] { (route(path, method, operation)) }
            }
        }
    }
}

fn route(path: &str, method: &str, operation: &Value) -> Markup {
    let role = operation["security"][0]["key"][0].as_str();
    html! {
        details id=(text(&operation["operationId"])) {
            summary {
                span.method { (method) } code { (path) } " " (text(&operation["summary"]))
                @if let Some(role) = role { span.faint { " · role " (role) } }
            }
            p { (told(text(&operation["description"]))) }
            @if operation["parameters"].is_array() {
                table {
                    tr { th { "Parameter" } th { "In" } th { "Type" } th { "" } }
                    @for parameter in items(&operation["parameters"]) {
                        tr {
                            td { code { (text(&parameter["name"])) } @if parameter["required"] == true { " *" } }
                            td { (text(&parameter["in"])) }
                            td { (kind(&parameter["schema"])) }
                            td { (told(text(&parameter["description"]))) }
                        }
                    }
                }
            }
            @if operation["requestBody"].is_object() {
                p {
                    b { "Body" } @if operation["requestBody"]["required"] == false { " (may be empty)" } ". "
                    (told(text(&operation["requestBody"]["description"])))
                }
                (contents(&operation["requestBody"]["content"]))
            }
            p { b { "Answers" } }
            @for (status, response) in members(&operation["responses"]) {
                @if let Some(name) = response["$ref"].as_str().and_then(last) {
                    p { code { (status) } " " a href={ "#response-" (name) } { (name) } }
                } @else {
                    p { code { (status) } " " (told(text(&response["description"]))) }
                    (contents(&response["content"]))
                }
            }
        }
    }
}

fn contents(contents: &Value) -> Markup {
    html! {
        @for (media_type, content) in members(contents) {
            p { code { (media_type) } " " (kind(&content["schema"])) }
            @match &content["example"] {
                Value::Null => {},
                Value::String(example) => pre { (example) },
                example => pre { (pretty(example)) },
            }
        }
    }
}

/// A schema of a name of its own: what it is, and its members.
fn described(schema: &Value) -> Markup {
    let required = items(&schema["required"]);
    html! {
        p { (told(text(&schema["description"]))) }
        @if schema["properties"].is_object() {
            table {
                tr { th { "Member" } th { "Type" } th { "" } }
                @for (name, member) in members(&schema["properties"]) {
                    tr {
                        td { code { (name) } @if required.iter().any(|needed| needed == name) { " *" } }
                        td { (kind(member)) }
                        td { (told(text(&member["description"]))) }
                    }
                }
            }
        } @else {
            p { (kind(schema)) }
        }
    }
}

/// A type in a few words, with its limits.
fn kind(schema: &Value) -> Markup {
    if let Some(name) = schema["$ref"].as_str().and_then(last) {
        return html! { a href={ "#schema-" (name) } { (name) } };
    }
    for name in ["oneOf", "anyOf", "allOf"] {
        if let Some(choices) = schema[name].as_array() {
            let between = if name == "allOf" { " and " } else { " or " };
            return html! { @for (i, choice) in choices.iter().enumerate() { @if i > 0 { (between) } (kind(choice)) } };
        }
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().map(text).collect(),
        _ => vec!["any"],
    };
    html! {
        (types.join(" or "))
        @if schema["items"].is_object() { " of " (kind(&schema["items"])) }
        @if schema["additionalProperties"].is_object() { " of " (kind(&schema["additionalProperties"])) }
        @if schema["type"] == "object" && schema["properties"].is_object() {
            " {" @for (i, (name, member)) in members(&schema["properties"]).enumerate() {
                @if i > 0 { ", " } code { (name) } ": " (kind(member))
            } "}"
        }
        @for value in items(&schema["enum"]) { " " code { (value.to_string()) } }
        @for (name, sign) in LIMITS {
            @if !schema[*name].is_null() { span.faint { ", " (sign) " " (schema[*name].to_string()) } }
        }
    }
}

const LIMITS: &[(&str, &str)] = &[
    ("minimum", "≥"),
    ("exclusiveMinimum", ">"),
    ("maximum", "≤"),
    ("exclusiveMaximum", "<"),
    ("minLength", "length ≥"),
    ("maxLength", "length ≤"),
    ("minItems", "items ≥"),
    ("maxItems", "items ≤"),
    ("pattern", "pattern"),
];

/// Text in which `code` stands between backticks.
fn told(text: &str) -> Markup {
    html! {
        @for (i, part) in text.split('`').enumerate() { @if i % 2 == 1 { code { (part) } } @else { (part) } }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// The last part of a reference.
fn last(reference: &str) -> Option<&str> {
    reference.rsplit('/').next()
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}
