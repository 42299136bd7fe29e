//! The OpenRPC document, generated from the method table and the types.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::message::code;
use crate::table::{METHODS, Method};

/// The document of `rpc.discover` and docs/openrpc.json.
pub fn document() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
    });
    let mut generator = settings.into_generator();
    let methods: Vec<Value> = METHODS
        .iter()
        .map(|method| entry(method, &mut generator))
        .collect();
    let schemas = generator.take_definitions(true);
    json!({
        "openrpc": "1.2.6",
        "info": {
            "title": "Hyphae",
            "description": "JSON-RPC of a Hyphae node. Names and shapes of methods that the Mycelium \
                network has are its own.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0 OR MIT" },
        },
        "servers": [{ "name": "local", "url": "http://127.0.0.1:8990/rpc" }],
        "methods": methods,
        "components": { "schemas": schemas },
    })
}

fn entry(method: &Method, generator: &mut schemars::SchemaGenerator) -> Value {
    let schema = (method.params_schema)(generator);
    let empty = Map::new();
    let properties = schema
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let required = schema.get("required").and_then(Value::as_array);
    let params: Vec<Value> = method
        .params
        .iter()
        .map(|name| {
            let schema = properties.get(*name).cloned().unwrap_or(Value::Bool(true));
            let needed = required.is_some_and(|all| all.iter().any(|one| one == name));
            json!({ "name": name, "required": needed, "schema": schema })
        })
        .collect();
    let errors: Vec<Value> = method
        .errors
        .iter()
        .map(|code| json!({ "code": code, "message": code::gloss(*code) }))
        .collect();
    json!({
        "name": method.name,
        "summary": method.summary,
        "paramStructure": "either",
        "params": params,
        "result": { "name": "result", "schema": (method.result_schema)(generator) },
        "errors": errors,
    })
}
