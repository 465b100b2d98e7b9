//! HTTP criteria of a rule (policy model 2.12, 18.8) and the peer as written, which requests are judged by (18.3).

use crate::selector::Selector;

/// What a request must be like; all present criteria must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpMatch {
    /// Any of these, case-sensitive; `*` is any; empty means no criterion.
    pub methods: Vec<String>,
    /// Any of these; empty means no criterion.
    pub paths: Vec<PathMatch>,
    /// All of these.
    pub headers: Vec<HeaderMatch>,
}

/// A path criterion, compared with the normalised path (policy model 18.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// Equal.
    Exact(String),
    /// Equal, or goes on with `/`.
    Prefix(String),
}

/// A header criterion (policy model 18.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Name in lower case.
    pub name: String,
    /// How values are compared.
    pub operator: HeaderOperator,
    /// Any of these; empty with `Exists` and `DoesNotExist`. Case-sensitive.
    pub values: Vec<String>,
}

/// How a header's value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderOperator {
    /// The request has the header.
    Exists,
    /// It has not.
    DoesNotExist,
    /// The value begins with one of the values.
    HasPrefix,
    /// The value ends with one of them.
    HasSuffix,
    /// The value is one of them.
    In,
    /// The value is none of them; a request without the header matches.
    NotIn,
    /// The whole value matches one of them, as regular expressions.
    MatchesRegex,
}

/// The peer criteria of one side as the manifest has them, without scope: a request is judged by its sender's certificate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WrittenPeer {
    /// Namespace of the policy, where it has one.
    pub policy_namespace: Option<String>,
    /// `selector`.
    pub selector: Option<Selector>,
    /// `notSelector`.
    pub not_selector: Option<Selector>,
    /// `namespaceSelector`, over namespace labels without prefix.
    pub namespace_selector: Option<Selector>,
    /// `serviceAccounts.names`.
    pub service_account_names: Vec<String>,
    /// `serviceAccounts.selector`, over service-account labels without prefix.
    pub service_account_selector: Option<Selector>,
}
