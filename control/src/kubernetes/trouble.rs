//! Why a request did not do what it should, by what the one who asked does next.

use std::time::Duration;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nobody answers, or not in our language: ask again later, and at once when somebody else got through.
    Unreachable(String),
    /// The server answers that it cannot just now.
    Busy {
        /// In words.
        reason: String,
        /// How long it asks to be left alone.
        patience: Duration,
    },
    /// We may not, by the server's rules; its sentence names the verb and the resource.
    Forbidden(String),
    /// There is no such thing.
    Missing(String),
    /// What we knew is too old for the server to continue from.
    Expired,
    /// Somebody else was faster.
    Conflict(String),
    /// The server does not take the request as it is.
    Refused(String),
}

impl Trouble {
    /// Returns the trouble that `error` is; `what` was asked for.
    pub fn of(what: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let patience = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                Self::of_status(what, status.code, &status.message, patience)
            }
            error => Self::Unreachable(format!("{what}: {}", chain(error))),
        }
    }

    /// Returns the trouble that the server's answer is.
    pub fn of_status(what: &str, code: u16, message: &str, patience: u32) -> Self {
        let reason = format!("{what}: {message}");
        match code {
            401 | 403 => Self::Forbidden(reason),
            404 => Self::Missing(reason),
            410 => Self::Expired,
            409 => Self::Conflict(reason),
            400 | 405 | 406 | 415 | 422 => Self::Refused(reason),
            _ => Self::Busy { reason, patience: Duration::from_secs(patience.min(60).into()) },
        }
    }

    /// Returns it in words.
    pub fn reason(&self) -> String {
        match self {
            Self::Unreachable(reason)
            | Self::Busy { reason, .. }
            | Self::Forbidden(reason)
            | Self::Missing(reason)
            | Self::Conflict(reason)
            | Self::Refused(reason) => reason.clone(),
            Self::Expired => "what was known is too old for the server to continue from".to_owned(),
        }
    }
}

/// Returns an error with its causes in one line, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    text
}
