//! Who asks: a known party, by a signature, by `Authorization: Bearer`, or by the secret in a body; a
//! token may stand in the place of either secret.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::HttpRequest;
use actix_web::http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName};
use chrono::Utc;

use super::changes::{App, Spending, Who};
use super::problem::Problem;
use super::request_id::RequestId;
use super::signature::{Message, Signature, SignatureError};
use super::throttle::By;
use super::{Api, host};
use crate::clients::{self, Client, Key, Right, TokenError, UsernamePattern, Usernames};
use crate::instance::name::{AppName, Username};
use crate::manifest::{Actor, Cause, Manifest, ManifestError};

const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// A known party that was let in, with the right that it needs.
pub(super) struct Caller {
    shown: Shown,
    source: Option<IpAddr>,
}

impl Caller {
    /// Lets a known party in that has this right. `body` is what a signature has to cover; `secret` is
    /// what the body held as such.
    pub async fn admit(
        request: &HttpRequest,
        api: &Api,
        right: Right,
        body: &[u8],
        secret: Option<&str>,
    ) -> Result<Self, Problem> {
        let source = source(request);
        let shown = identify(request, api, body, secret).map_err(|refused| refused.answer(api, source))?;
        if let Some(wait) = api.throttle.admit(source.into(), shown.by(), Instant::now()) {
            return Err(too_many(wait));
        }
        let caller = Self { shown, source };
        if let Proof::Signature { nonce } = &caller.shown.proof {
            caller.spend(api, nonce).await?;
        }
        caller.require(api, right).await?;
        Ok(caller)
    }

    /// A signature's nonce is good once.
    async fn spend(&self, api: &Api, nonce: &str) -> Result<(), Problem> {
        let client = &self.shown.client.id;
        if api.manifest.use_nonce(client, nonce).await? {
            return Ok(());
        }
        log::warn!(request = RequestId::current(); "a signed request of the client {client} again");
        Err(Problem::InvalidSignature("the nonce was used before".to_owned()))
    }

    /// That a client lacks a right is an event.
    async fn require(&self, api: &Api, right: Right) -> Result<(), Problem> {
        if self.shown.client.policy.allows(right) {
            return Ok(());
        }
        let manifest = api.manifest.caused_by(self.cause(Arc::new(self.spending(api, None))));
        self.note_refusal(&manifest, None, right.as_str(), "forbidden").await;
        Err(Problem::Forbidden(format!("it needs the right {}", right.as_str())))
    }

    /// What is not written, for whichever reason, is logged.
    async fn note_refusal(
        &self,
        manifest: &Manifest,
        names: Option<(&Username, &AppName)>,
        kind: &'static str,
        slug: &'static str,
    ) {
        if let Proof::Token { username } = &self.shown.proof {
            // Anybody may have one, and an event is never removed.
            let client = &self.shown.client.id;
            log::warn!(request = RequestId::current(); "{username}, by a token of the client {client}: {kind} is refused: {slug}");
        } else if let Err(error) = manifest.note_refusal(names, kind, slug).await {
            let client = &self.shown.client.id;
            log::warn!(request = RequestId::current(); "the client {client}: {kind} is refused: {slug}; that is not written: {error}");
        }
    }

    /// Whose instances it may know of.
    pub fn usernames(&self) -> Usernames {
        let of_the_client = &self.shown.client.policy.usernames;
        let Proof::Token { username } = &self.shown.proof else { return of_the_client.clone() };
        // No token lets its client do more than it may.
        let own = Some(username).filter(|username| of_the_client.permits(username));
        Usernames::Only(own.into_iter().cloned().map(UsernamePattern::Exactly).collect())
    }

    /// What it does to one instance, if it may act for that user.
    pub async fn act<'a>(
        &'a self,
        api: &Api,
        kind: &'static str,
        username: &'a Username,
        appname: &'a AppName,
    ) -> Result<Act<'a>, Problem> {
        let spending = Arc::new(self.spending(api, Some((username.clone(), appname.clone()))));
        let manifest = api.manifest.caused_by(self.cause(Arc::clone(&spending)));
        let act = Act { caller: self, manifest, spending, kind, username, appname };
        if self.usernames().permits(username) {
            return Ok(act);
        }
        let problem = Problem::Forbidden("it may not act for this user".to_owned());
        act.note(&problem).await;
        Err(problem)
    }

    /// What it may write, by what it has written lately.
    fn spending(&self, api: &Api, app: Option<App>) -> Spending {
        let bearer = match &self.shown.proof {
            Proof::Token { username } => Some(username.clone()),
            Proof::Secret | Proof::Signature { .. } => None,
        };
        Spending::new(&api.changes, Who { client: self.shown.client.id.clone(), bearer }, app)
    }

    fn cause(&self, spending: Arc<Spending>) -> Cause {
        let (client, key) = (self.shown.client.id.clone(), self.shown.key_id.clone());
        Cause {
            actor: Actor::Client { client, key, source: self.source },
            request: RequestId::current(),
            budget: Some(spending),
        }
    }
}

/// What a caller does to one instance; who it is stands in every event of it.
pub(super) struct Act<'a> {
    /// The manifest, through which it is done.
    pub manifest: Manifest,
    caller: &'a Caller,
    spending: Arc<Spending>,
    kind: &'static str,
    username: &'a Username,
    appname: &'a AppName,
}

impl Act<'_> {
    /// What came of it; a refusal is an event, too.
    pub async fn noting<T>(&self, outcome: Result<T, ManifestError>) -> Result<T, Problem> {
        match outcome {
            Ok(done) => Ok(done),
            Err(error) => {
                // Whether a change that was cut off was written is unknown.
                if !matches!(error, ManifestError::Unavailable(_)) {
                    self.spending.give_back();
                }
                let problem = Problem::from(error);
                self.note(&problem).await;
                Err(problem)
            }
        }
    }

    async fn note(&self, problem: &Problem) {
        // One for each change too many would be as bad as the change.
        if !problem.is_the_callers() || matches!(problem, Problem::TooManyChanges { .. }) {
            return;
        }
        let names = Some((self.username, self.appname));
        self.caller.note_refusal(&self.manifest, names, self.kind, problem.slug()).await;
    }
}

fn too_many(wait: Duration) -> Problem {
    Problem::TooManyFailures { seconds: wait.as_secs().saturating_add(1) }
}

/// Why nobody is let in.
enum Refused {
    /// Nothing was shown at all, which is no guess.
    Nothing,
    /// A key that nobody has, or a signature that it does not make; of a client that it claims to be.
    Wrong(Option<String>, Problem),
    /// A signature whose form, digest or time won't do, or a token whose claims won't: no guess either.
    Unfit(Problem),
}

impl Refused {
    /// What is answered; a guess is counted, and told of.
    fn answer(self, api: &Api, source: Option<IpAddr>) -> Problem {
        let (client, problem) = match self {
            Self::Nothing => return Problem::InvalidSecret,
            Self::Unfit(problem) => return problem,
            Self::Wrong(client, problem) => (client, problem),
        };
        if let Some(wait) = api.throttle.fail(source.into(), client.as_deref(), Instant::now()) {
            return too_many(wait);
        }
        let whom = client.map(|client| format!(" of the client {client}")).unwrap_or_default();
        let from = source.map(|source| source.to_string()).unwrap_or_default();
        log::warn!(source = from, request = RequestId::current(); "a wrong key{whom}");
        problem
    }
}

/// Whose key somebody has shown that he has.
struct Shown {
    client: Arc<Client>,
    key_id: String,
    proof: Proof,
}

/// How it was shown, and what that means for the request.
enum Proof {
    /// The key itself.
    Secret,
    /// By a signature, whose nonce has to be a new one.
    Signature { nonce: String },
    /// By a token, which is good for this user alone.
    Token { username: Username },
}

impl Shown {
    fn of(key: Key, proof: Proof) -> Self {
        Self { client: key.client, key_id: key.id, proof }
    }

    fn by(&self) -> By<'_> {
        match self.proof {
            Proof::Token { .. } => By::Token(&self.key_id),
            Proof::Secret | Proof::Signature { .. } => By::Client(&self.client.id),
        }
    }
}

/// By the first of the three ways in that is taken.
fn identify(request: &HttpRequest, api: &Api, body: &[u8], secret: Option<&str>) -> Result<Shown, Refused> {
    let headers = request.headers();
    if headers.contains_key(SIGNATURE) || headers.contains_key(SIGNATURE_INPUT) {
        by_signature(request, api, body)
    } else if headers.contains_key(AUTHORIZATION) {
        bearer(headers).map_or(Err(Refused::Nothing), |token| by_secret(api, token))
    } else {
        secret.map_or(Err(Refused::Nothing), |secret| by_secret(api, secret))
    }
}

/// A key, or a token in place of it.
fn by_secret(api: &Api, secret: &str) -> Result<Shown, Refused> {
    if let Some(key) = api.clients.admit(secret) {
        return Ok(Shown::of(key, Proof::Secret));
    }
    let error = match api.clients.admit_token(secret, &api.settings.origin()) {
        Ok(grant) => {
            let proof = Proof::Token { username: grant.username };
            return Ok(Shown { client: grant.client, key_id: grant.key_id, proof });
        }
        Err(error) => error,
    };
    let problem = Problem::InvalidToken(error.to_string());
    Err(match error {
        TokenError::None => Refused::Wrong(None, Problem::InvalidSecret),
        TokenError::Mismatch => Refused::Wrong(None, problem),
        TokenError::Claims(_) => Refused::Unfit(problem),
    })
}

/// RFC 6750, section 2.1.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn by_signature(request: &HttpRequest, api: &Api, body: &[u8]) -> Result<Shown, Refused> {
    let unfit = |error: &SignatureError| Refused::Unfit(Problem::InvalidSignature(error.to_string()));
    let headers = request.headers();
    // A list that is split over lines is one list (RFC 9110, section 5.3).
    let field = |name: HeaderName| {
        let values: Vec<&str> = headers.get_all(name).filter_map(|value| value.to_str().ok()).collect();
        values.join(", ")
    };
    let signature = Signature::parse(&field(SIGNATURE_INPUT), &field(SIGNATURE)).map_err(|error| unfit(&error))?;
    // Whether or not there is such a client: else its failures would tell, being counted.
    let claimed = clients::client_of(&signature.key_id).map(str::to_owned);
    let key = api.clients.key(&signature.key_id);
    let proto = headers.get_all(FORWARDED_PROTO).last().and_then(|value| value.to_str().ok());
    let host_field = headers.get(HOST).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let host = host_field.or_else(|| host(request.head())).unwrap_or_default();
    let message = Message {
        method: request.method().as_str(),
        scheme: proto.unwrap_or("http"),
        host: &host,
        target: request.uri().path_and_query().map_or("/", |target| target.as_str()),
        fields: headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect(),
        body,
    };
    // Of a key that there is not, the same is said as of one that there is.
    let secret = key.as_ref().map_or(&b"nobody's"[..], Key::secret);
    let verified = signature.verify(&message, secret, Utc::now().timestamp());
    match (verified, key) {
        (Ok(()), Some(key)) => Ok(Shown::of(key, Proof::Signature { nonce: signature.nonce })),
        (Ok(()) | Err(SignatureError::Mismatch), _) => {
            Err(Refused::Wrong(claimed, Problem::InvalidSignature(SignatureError::Mismatch.to_string())))
        }
        (Err(error), _) => Err(unfit(&error)),
    }
}

/// Where the request came from: what HAProxy says, which lets nobody else say it; the connection's
/// other end where there is no HAProxy.
pub(super) fn source(request: &HttpRequest) -> Option<IpAddr> {
    let forwarded = request.headers().get_all(FORWARDED_FOR).last().and_then(|value| value.to_str().ok());
    let last = forwarded.and_then(|list| list.rsplit(',').next()).and_then(|address| address.trim().parse().ok());
    last.or_else(|| request.peer_addr().map(|peer| peer.ip()))
}
