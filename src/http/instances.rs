//! GET /instances and GET /instances/{username}/{appname}.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::auth::Caller;
use super::problem::{FieldError, Problem, ProblemDocument};
use super::view::InstanceView;
use crate::clients::Right;
use crate::instance::State;
use crate::instance::name::{AppName, Username};
use crate::manifest::Filter;

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;

/// One page of a listing, in the order of username and appname.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Listing {
    /// The instances of this page, tombstones included.
    instances: Vec<InstanceView>,
    /// Where the next page is; none on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "/instances?limit=100&after=alice%2Fnotes")]
    next: Option<String>,
}

/// Lists instances.
#[utoipa::path(
    get, path = "/instances",
    security(("secret" = [])),
    params(
        ("username" = Option<String>, Query, max_length = 63, pattern = "^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$", description = "One user's only"),
        ("state" = Option<State>, Query, description = "Those in one state only"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Instances on a page: 1 to 1000, by default 100"),
        ("after" = Option<String>, Query, max_length = 127, pattern = "^[A-Za-z0-9]+(-[A-Za-z0-9]+)*/[A-Za-z0-9]+(-[A-Za-z0-9]+)*$", description = "Begin after this one, `username/appname`"),
    ),
    responses(
        (status = 200, description = "One page", body = Listing),
        (status = 400, description = "A parameter won't do", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "The secret is wrong or missing", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "No database; try again later", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(request: HttpRequest, api: web::Data<Api>) -> Result<HttpResponse, Problem> {
    let caller = Caller::admit(&request, &api, Right::Read, &[], None).await?;
    let mut query = Query::parse(request.query_string()).map_err(Problem::InvalidQuery)?;
    query.filter.permitted = caller.usernames();
    let page = api.manifest.list(&query.filter, query.after.as_ref(), query.limit).await?;
    let next = page.next.map(|(username, appname)| {
        let mut link = url::form_urlencoded::Serializer::new(String::new());
        link.append_pair("limit", &query.limit.to_string());
        if let Some(username) = &query.filter.username {
            link.append_pair("username", username.as_str());
        }
        if let Some(state) = query.filter.state {
            link.append_pair("state", state.as_str());
        }
        link.append_pair("after", &format!("{username}/{appname}"));
        format!("/instances?{}", link.finish())
    });
    let instances = page.instances.iter().map(|row| InstanceView::new(row, api.settings.public)).collect();
    Ok(HttpResponse::Ok().json(Listing { instances, next }))
}

/// Shows one instance.
#[utoipa::path(
    get, path = "/instances/{username}/{appname}",
    security(("secret" = [])),
    params(
        ("username" = String, Path, description = "Whose it is"),
        ("appname" = String, Path, description = "Which app it serves"),
    ),
    responses(
        (status = 200, description = "The instance", body = InstanceView),
        (status = 401, description = "The secret is wrong or missing", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "There is no such instance", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "No database; try again later", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    request: HttpRequest,
    path: web::Path<(String, String)>,
    api: web::Data<Api>,
) -> Result<HttpResponse, Problem> {
    let caller = Caller::admit(&request, &api, Right::Read, &[], None).await?;
    let (username, appname) = named(&path)?;
    if !caller.usernames().permits(&username) {
        return Err(Problem::Forbidden("it may not act for this user".to_owned()));
    }
    let row = api.manifest.find(&username, &appname).await?.ok_or(Problem::NoSuchInstance)?;
    Ok(HttpResponse::Ok().json(InstanceView::new(&row, api.settings.public)))
}

/// The names in a path. What is no name can't be the name of an instance.
pub(super) fn named((username, appname): &(String, String)) -> Result<(Username, AppName), Problem> {
    let (username, appname) = (Username::parse(username), AppName::parse(appname));
    username.ok().zip(appname.ok()).ok_or(Problem::NoSuchInstance)
}

struct Query {
    filter: Filter,
    after: Option<(Username, AppName)>,
    limit: usize,
}

impl Query {
    fn parse(text: &str) -> Result<Self, Vec<FieldError>> {
        let mut query = Self { filter: Filter::default(), after: None, limit: LIMIT_DEFAULT };
        let mut errors = Vec::new();
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
            let outcome = match name.as_ref() {
                "username" => Username::parse(&value)
                    .map(|username| query.filter.username = Some(username))
                    .map_err(|error| error.to_string()),
                "state" => value.parse().map(|state| query.filter.state = Some(state)).map_err(|_| {
                    "must be pending, running, failed, paused, asleep, archived, deleting or deleted".to_owned()
                }),
                "limit" => match value.parse() {
                    Ok(limit) if (1..=LIMIT_MAX).contains(&limit) => {
                        query.limit = limit;
                        Ok(())
                    }
                    _ => Err(format!("must be a number from 1 to {LIMIT_MAX}")),
                },
                "after" => {
                    let pair = value.split_once('/').and_then(|(username, appname)| {
                        Some((Username::parse(username).ok()?, AppName::parse(appname).ok()?))
                    });
                    query.after = pair;
                    if query.after.is_some() { Ok(()) } else { Err("must be username/appname".to_owned()) }
                }
                _ => Err("is not a parameter".to_owned()),
            };
            if let Err(detail) = outcome {
                let field = name.chars().filter(|c| !c.is_control()).take(64).collect();
                errors.push(FieldError { field, detail });
            }
        }
        if errors.is_empty() { Ok(query) } else { Err(errors) }
    }
}
