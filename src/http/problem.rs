//! Errors as clients see them: RFC 9457 problem documents, each with a type that never changes.

use std::fmt;

use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpRequest, HttpResponse, Responder, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

use super::request_id::RequestId;
use crate::manifest::{ManifestError, Overspent};

/// What every problem's type begins with.
const TYPE: &str = "urn:haas:problem:";

/// A field of the request that won't do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// The field's name.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

/// Every way in which a request can be refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The secret is wrong or missing. The same whether or not the instance exists.
    InvalidSecret,
    /// The request is signed, and the signature won't do.
    InvalidSignature(String),
    /// A token was shown in place of a key, and won't do.
    InvalidToken(String),
    /// Who asks is known, and may not do this.
    Forbidden(String),
    /// Too many wrong keys have come from there, or were said to be this client's.
    TooManyFailures {
        /// How long to wait.
        seconds: u64,
    },
    /// This client has changed as much lately as it may.
    TooManyChanges {
        /// Which bound it has reached.
        bound: String,
        /// How long to wait.
        seconds: u64,
    },
    /// The body is neither JSON nor a form, as announced.
    MalformedBody(String),
    /// A field that does not exist: a typo must not be ignored.
    UnknownField(Vec<FieldError>),
    /// A parameter of the query that won't do.
    InvalidQuery(Vec<FieldError>),
    /// The body's content type is none that the path takes.
    UnsupportedMediaType {
        /// Those that it takes.
        taken: &'static [&'static str],
    },
    /// The body is over the limit.
    BodyTooLarge,
    /// Fields whose values won't do.
    InvalidFields(Vec<FieldError>),
    /// A name that the pair would get is taken. Which one, not whose.
    NameTaken(String),
    /// The opposite was asked for while this request waited.
    Superseded,
    /// There never was such an instance.
    NoSuchInstance,
    /// The control API has no such path.
    NoSuchPath,
    /// The path is there, for another method.
    MethodNotAllowed {
        /// The method that is.
        allow: &'static str,
    },
    /// No app has this host.
    NoSuchApp,
    /// The app with this host does not answer yet.
    NotReady,
    /// Everything that may be awake is in use, so that this app can't be woken.
    AllBusy,
    /// More requests wait for this app than it may have.
    TooManyRequests,
    /// The body is longer than an app may get.
    ContentTooLarge,
    /// The app hung up, or sent no answer.
    BadAnswer,
    /// Its data is being removed.
    BeingPurged,
    /// The user has as many apps as one may have.
    TooManyApps(u32),
    /// The app's data takes more of the disk than it may.
    StorageFull,
    /// Every port is taken.
    NoFreePort,
    /// The manifest can't be asked.
    Unavailable,
    /// A bug, or a corrupt row. The cause is in the log.
    Internal,
}

/// The document (RFC 9457, section 3).
#[derive(Debug, Serialize, ToSchema)]
pub struct ProblemDocument {
    /// Which problem: never changes, compare this.
    #[serde(rename = "type")]
    #[schema(example = "urn:haas:problem:invalid-fields")]
    kind: String,
    /// The problem in a few words.
    title: &'static str,
    /// The status code, once more.
    status: u16,
    /// What is particular to this occurrence.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Every field that is wrong, at once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
}

impl Problem {
    fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::InvalidSecret => (S::UNAUTHORIZED, "invalid-secret", "The secret is wrong or missing"),
            Self::InvalidSignature(_) => (S::UNAUTHORIZED, "invalid-signature", "The signature won't do"),
            Self::InvalidToken(_) => (S::UNAUTHORIZED, "invalid-token", "The token won't do"),
            Self::Forbidden(_) => (S::FORBIDDEN, "forbidden", "This client may not do that"),
            Self::TooManyFailures { .. } => {
                (S::TOO_MANY_REQUESTS, "too-many-failures", "Too many requests with a wrong key")
            }
            Self::TooManyChanges { .. } => {
                (S::TOO_MANY_REQUESTS, "too-many-changes", "Too many changes within a minute")
            }
            Self::MalformedBody(_) => (S::BAD_REQUEST, "malformed-body", "The body can't be read"),
            Self::UnknownField(_) => (S::BAD_REQUEST, "unknown-field", "The body has fields that don't exist"),
            Self::InvalidQuery(_) => (S::BAD_REQUEST, "invalid-query", "The query has parameters that won't do"),
            Self::UnsupportedMediaType { .. } => {
                (S::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "The body has the wrong content type")
            }
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, "body-too-large", "The body is over 16 KiB"),
            Self::InvalidFields(_) => (S::UNPROCESSABLE_ENTITY, "invalid-fields", "Some fields won't do"),
            Self::NameTaken(_) => (S::CONFLICT, "name-taken", "A name is taken"),
            Self::Superseded => (S::CONFLICT, "superseded", "The opposite was asked for in the meantime"),
            Self::NoSuchInstance => (S::NOT_FOUND, "no-such-instance", "There is no such instance"),
            Self::NoSuchPath => (S::NOT_FOUND, "no-such-path", "The control API has no such path"),
            Self::MethodNotAllowed { .. } => {
                (S::METHOD_NOT_ALLOWED, "method-not-allowed", "The path takes another method")
            }
            Self::NoSuchApp => (S::NOT_FOUND, "no-such-app", "No app has this host"),
            Self::NotReady => (S::SERVICE_UNAVAILABLE, "not-ready", "This app is not ready yet"),
            Self::AllBusy => (S::SERVICE_UNAVAILABLE, "all-busy", "Everything that may be awake is in use"),
            Self::TooManyRequests => (S::TOO_MANY_REQUESTS, "too-many-requests", "Too many requests wait for this app"),
            Self::ContentTooLarge => {
                (S::PAYLOAD_TOO_LARGE, "content-too-large", "The body is longer than an app may get")
            }
            Self::BadAnswer => (S::BAD_GATEWAY, "bad-answer", "This app gave no answer"),
            Self::BeingPurged => (S::CONFLICT, "being-purged", "It is being purged"),
            Self::TooManyApps(_) => (S::CONFLICT, "too-many-apps", "The user has as many apps as one may have"),
            Self::StorageFull => (S::INSUFFICIENT_STORAGE, "storage-full", "This app is stopped: its storage is full"),
            Self::NoFreePort => (S::SERVICE_UNAVAILABLE, "no-free-port", "There is no room for another instance"),
            Self::Unavailable => (S::SERVICE_UNAVAILABLE, "unavailable", "The service is unavailable for the moment"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side"),
        }
    }

    /// The last part of its type.
    pub(super) fn slug(&self) -> &'static str {
        self.parts().1
    }

    /// Whether the request is to blame, and not a part of ours.
    pub(super) fn is_the_callers(&self) -> bool {
        self.parts().0.is_client_error()
    }

    /// Seconds after which asking again makes sense.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::TooManyFailures { seconds } | Self::TooManyChanges { seconds, .. } => Some(*seconds),
            Self::NotReady => Some(2),
            Self::TooManyRequests => Some(1),
            Self::AllBusy => Some(10),
            Self::Unavailable => Some(5),
            Self::NoFreePort => Some(60),
            _ => None,
        }
    }

    /// The document that is sent.
    #[must_use]
    pub fn document(&self) -> ProblemDocument {
        let (status, slug, title) = self.parts();
        let detail = match self {
            Self::MalformedBody(why) | Self::InvalidSignature(why) | Self::InvalidToken(why) | Self::Forbidden(why) => {
                Some(why.clone())
            }
            Self::UnsupportedMediaType { taken } => Some(format!("must be {}", taken.join(" or "))),
            Self::NameTaken(which) => Some(format!("the name {which} is taken")),
            Self::TooManyChanges { bound, seconds } => {
                Some(format!("{bound}; the next one is possible in {seconds} s"))
            }
            Self::TooManyApps(most) => Some(format!("a user may have {most}")),
            _ => None,
        };
        let errors = match self {
            Self::UnknownField(errors) | Self::InvalidQuery(errors) | Self::InvalidFields(errors) => errors.clone(),
            _ => Vec::new(),
        };
        ProblemDocument { kind: format!("{TYPE}{slug}"), title, status: status.as_u16(), detail, errors }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.parts().2)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.parts().0
    }

    fn error_response(&self) -> HttpResponse {
        let mut answer = HttpResponse::build(self.status_code());
        if let Some(seconds) = self.retry_after() {
            answer.insert_header((RETRY_AFTER, seconds.to_string()));
        }
        match self {
            Self::InvalidSecret | Self::InvalidSignature(_) => {
                answer.insert_header((WWW_AUTHENTICATE, "Bearer"));
            }
            // RFC 6750, section 3.1.
            Self::InvalidToken(_) => {
                answer.insert_header((WWW_AUTHENTICATE, "Bearer error=\"invalid_token\""));
            }
            Self::MethodNotAllowed { allow } => {
                answer.insert_header((ALLOW, *allow));
            }
            _ => {}
        }
        let body = serde_json::to_string(&self.document()).unwrap_or_default();
        answer.content_type("application/problem+json").body(body)
    }
}

impl Responder for Problem {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        self.error_response()
    }
}

impl From<ManifestError> for Problem {
    /// The one place where a handler's failure to reach the manifest is logged.
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::NameTaken(which) => Self::NameTaken(which),
            ManifestError::UnfitHost => Self::InvalidFields(vec![FieldError {
                field: "appname".to_owned(),
                detail: "username and appname together make a host name that is too long, or begins with xn--"
                    .to_owned(),
            }]),
            ManifestError::TooManyHosts => {
                Self::InvalidFields(vec![FieldError { field: "hosts".to_owned(), detail: error.to_string() }])
            }
            ManifestError::BeingPurged => Self::BeingPurged,
            ManifestError::TooManyApps(most) => Self::TooManyApps(most),
            ManifestError::TooManyChanges(Overspent { bound, wait }) => {
                Self::TooManyChanges { bound, seconds: wait.as_secs().saturating_add(1) }
            }
            ManifestError::StorageFull(_) => Self::StorageFull,
            ManifestError::NoFreePort => {
                log::error!(request = RequestId::current(); "no port is free; see tenant.ports");
                Self::NoFreePort
            }
            ManifestError::Unavailable(_) => {
                log::warn!(request = RequestId::current(); "answered 503: {error}");
                Self::Unavailable
            }
            other => {
                log::error!(request = RequestId::current(); "answered 500: {other}");
                Self::Internal
            }
        }
    }
}
