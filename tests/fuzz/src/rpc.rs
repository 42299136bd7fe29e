//! Requests and answers of JSON-RPC.

use hyphae_rpc::{Request, Response};

/// The body of a request, and of a response.
pub fn rpc(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let again = serde_json::to_value(&request).ok();
        let back = again.and_then(|value| serde_json::from_value::<Request>(value).ok());
        let fields = |r: Request| {
            (
                r.jsonrpc,
                r.method,
                r.params,
                r.id.filter(|id| !id.is_null()),
            )
        };
        assert_eq!(back.map(fields), Some(fields(request)));
    }
    if let Ok(response) = serde_json::from_slice::<Response>(data) {
        assert!(serde_json::to_value(&response).is_ok());
    }
}
