//! Who signals HAProxy's master.

use std::sync::Arc;
use std::time::Duration;

use haas::haproxy::{HaproxyError, Proxy, Standing};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::serving;
use super::support::{Rig, Stub, routes};

#[tokio::test]
async fn a_haproxy_of_another_container_is_signalled_by_who_can_and_never_by_its_process_id() {
    let mut rig = Rig::new(false);
    rig.settings.confirm_timeout = Duration::from_secs(2);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    serving(&mut rig, &routes(&[("notes", notes.port)])).await;
    // Here the process id is good, and is left alone all the same.
    rig.settings.reload_container = Some("elsewhere".to_owned());
    let both = routes(&[("notes", notes.port), ("todo", todo.port)]);
    match rig.haproxy().publish_alone(&both).await {
        Err(HaproxyError::Unconfirmed { reason, restored, .. }) => {
            assert!(restored && reason.contains("the container elsewhere"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.get("todo.alice.haas.localhost", "/").await.status, 503);
    let reason = |haproxy: haas::haproxy::Haproxy, told: Result<(), String>| {
        haproxy.with_reload_signal(Arc::new(move |_| Box::pin(std::future::ready(told.clone()))))
    };
    let refused = reason(rig.haproxy(), Err("there is no container elsewhere".to_owned())).publish_alone(&both).await;
    assert!(refused.unwrap_err().to_string().contains("there is no container elsewhere"));

    let signalled = rig.haproxy().with_reload_signal(Arc::new(|master| {
        let sent = kill(Pid::from_raw(master), Signal::SIGUSR2).map_err(|error| error.to_string());
        Box::pin(std::future::ready(sent))
    }));
    assert_eq!(signalled.publish_alone(&both).await.unwrap().standing, Standing::Live);
    assert_eq!(rig.get("todo.alice.haas.localhost", "/").await.by(), "todo");
    let workers = signalled.workers().await.unwrap();
    assert!(signalled.memory_mib(&workers[0]).await.is_some(), "HAProxy itself tells");
}
