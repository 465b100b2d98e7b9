//! A request, and what is answered to it.

use serde::Serialize;

/// One HTTP request, as a proxy sees it. A gRPC call is a POST to `/package.Service/Method` (policy model 32.7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Method, as written.
    pub method: String,
    /// Path, as it came; a query may follow it.
    pub path: String,
    /// Names, in any case, with values; a name may occur more than once.
    pub headers: Vec<(String, String)>,
}

/// What a request comes to. Everything but `Allow` refuses it (policy model 18.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RequestVerdict {
    /// It may pass.
    Allow,
    /// A rule, the end of a tier or of the profiles says no.
    Deny,
    /// The request itself is malformed.
    InvalidArgument,
    /// Something that policy needs is not known (yet).
    Internal,
}

/// How a refusal is told to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Status of the HTTP answer; 200 for gRPC, whose own status is in the trailers.
    pub http_status: u16,
    /// `grpc-status`, for gRPC.
    pub grpc_status: Option<u8>,
    /// Body, or `grpc-message`. It does not name the policy: the caller may be an attacker.
    pub message: &'static str,
}

impl Request {
    /// Returns the request of a gRPC call.
    pub fn grpc(service: &str, method: &str) -> Self {
        Self {
            method: "POST".to_owned(),
            path: format!("/{service}/{method}"),
            headers: vec![("content-type".to_owned(), "application/grpc".to_owned())],
        }
    }

    /// Returns whether the caller speaks gRPC and wants its refusal in trailers.
    pub fn is_grpc(&self) -> bool {
        self.values("content-type").any(|value| {
            let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            kind == "application/grpc" || kind.starts_with("application/grpc+")
        })
    }

    /// Returns the values of a header, in order.
    pub fn values<'r>(&'r self, name: &'r str) -> impl Iterator<Item = &'r str> {
        self.headers.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }
}

impl RequestVerdict {
    /// Returns what the caller is told; `None` when the request may pass.
    pub fn refusal(self, is_grpc: bool) -> Option<Refusal> {
        let (http_status, grpc_status, message) = match self {
            Self::Allow => return None,
            Self::Deny => (403, 7, "denied by network policy"),
            Self::InvalidArgument => (400, 3, "malformed request or peer certificate"),
            Self::Internal => (503, 13, "network policy is not ready"),
        };
        Some(match is_grpc {
            true => Refusal { http_status: 200, grpc_status: Some(grpc_status), message },
            false => Refusal { http_status, grpc_status: None, message },
        })
    }
}
