//! Administration over the bus.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Parameters of `admin.add` and `admin.remove`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PubkeyParams {
    /// Key of an administrator, hex.
    pub pubkey: String,
}

/// Parameters of `admin.setMethodPatterns`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PatternsParams {
    /// Methods that administrators may call over the bus; `*` stands for any run of characters.
    pub patterns: Vec<String>,
}

/// Parameters of `admin.busCall`: one of `dst_pubkey` and `dst_ip` is needed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BusCallParams {
    /// Key of the node to call, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_pubkey: Option<String>,
    /// Overlay address of the node to call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_ip: Option<String>,
    /// Method to call.
    pub method: String,
    /// Its parameters, by name or by position.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub params: Value,
    /// Id of the request, which the answer repeats; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// Seconds to wait for the answer; 30 by default, at most 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
}

impl BusCallParams {
    /// Longest wait for an answer.
    pub const TIMEOUT_MAX: Duration = Duration::from_secs(300);
    /// Wait for an answer when none is given.
    pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

    /// Wait for the answer.
    pub fn timeout(&self) -> Duration {
        self.timeout_secs
            .map_or(Self::TIMEOUT_DEFAULT, Duration::from_secs)
            .min(Self::TIMEOUT_MAX)
    }
}
