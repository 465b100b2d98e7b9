//! Who sends a request, by the certificate that the sender proved to hold (policy model 18.3).

use std::str::FromStr;

use crate::model::NamespacedName;

/// A service account of any trust domain: `spiffe://<domain>/ns/<namespace>/sa/<name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Trust domain. Policy does not ask for it: who may sign for which domain is a matter of the certificates' roots.
    pub domain: String,
    /// The service account.
    pub account: NamespacedName,
}

/// A principal of any other shape; its request is refused as malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "principal {text:?} is not spiffe://<domain>/ns/<namespace>/sa/<name>; issue the peer a certificate with such a URI, or let it call without one"
)]
pub struct PrincipalError {
    /// As it came.
    pub text: String,
}

impl FromStr for Principal {
    type Err = PrincipalError;

    fn from_str(text: &str) -> Result<Self, PrincipalError> {
        let parts = text.strip_prefix("spiffe://").map(|rest| rest.split('/').collect::<Vec<_>>());
        match parts.as_deref() {
            Some([domain, "ns", namespace, "sa", name])
                if ![domain, namespace, name].iter().any(|part| part.is_empty()) =>
            {
                let account = NamespacedName { namespace: (*namespace).to_owned(), name: (*name).to_owned() };
                Ok(Self { domain: (*domain).to_owned(), account })
            }
            _ => Err(PrincipalError { text: text.to_owned() }),
        }
    }
}
