//! What the engine's listing says of a container.

use bollard::models::ContainerSummary;
use chrono::{DateTime, Utc};

use super::{LABEL_GENERATION, LABEL_HELPER, LABEL_INSTANCE, LABEL_SPEC, LABEL_VOLUME, NO_GENERATION, Owned};
use crate::instance::plan::{Container, Status};

/// The engine's word for a container's state.
pub(super) fn container_status(word: &str) -> Status {
    match word {
        "running" => Status::Running,
        "restarting" => Status::Restarting,
        "paused" => Status::Paused,
        "removing" | "dead" => Status::Dead,
        _ => Status::Stopped,
    }
}

/// Whether it is no tenant's, but works on one's volume.
pub(super) fn is_helper(summary: &ContainerSummary) -> bool {
    summary.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL_HELPER))
}

/// The tenants' containers of a listing.
pub(super) fn tenants(listed: Vec<ContainerSummary>) -> impl Iterator<Item = Owned> {
    listed.into_iter().filter(|summary| !is_helper(summary)).filter_map(owned)
}

/// A container as the engine's listing has it; none of what has no name.
fn owned(summary: ContainerSummary) -> Option<Owned> {
    let labels = summary.labels.unwrap_or_default();
    let port = summary.ports.unwrap_or_default().iter().find_map(|port| port.public_port);
    Some(Owned {
        id: summary.id?,
        name: summary.names?.first()?.trim_start_matches('/').to_owned(),
        instance: labels.get(LABEL_INSTANCE).and_then(|text| text.parse().ok()),
        container: Container {
            generation: labels.get(LABEL_GENERATION).and_then(|text| text.parse().ok()).unwrap_or(NO_GENERATION),
            port,
            status: container_status(&summary.state.map(|state| state.to_string()).unwrap_or_default()),
            spec: labels.get(LABEL_SPEC).cloned(),
            volume: labels.get(LABEL_VOLUME).cloned(),
        },
        created: summary.created.and_then(|seconds| DateTime::<Utc>::from_timestamp(seconds, 0)).unwrap_or_default(),
    })
}
