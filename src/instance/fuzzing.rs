//! What the checked names promise, for any text.

use super::hosts::{belongs_to, extra_host};
use super::name::{AppName, ContainerName, Email, HostPattern, Hostname, NameError, RESERVED, Username};

/// The text as a name of each kind; and its parts between slashes as user, app, domain and custom domain.
///
/// # Panics
/// When a name that was accepted is not what it must be, or a good one was refused.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut parts = text.split('/');
    let mut part = || parts.next().unwrap_or("haas.example");
    let (user, app, domain, extra) = (part(), part(), part(), part());
    for text in [text, user, app, domain, extra] {
        a_label(text);
        a_host(text);
        an_email(text);
        a_container(text);
    }
    let Ok(domain) = Hostname::parse(domain) else { return };
    a_custom_domain(extra, &domain);
    if let (Ok(user), Ok(app)) = (Username::parse(user), AppName::parse(app)) {
        a_pair(&user, &app, &domain);
    }
}

fn is_label(text: &str) -> bool {
    let plain = |piece: &str| !piece.is_empty() && piece.bytes().all(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63 && text.split('-').all(plain) && !RESERVED.contains(&text.to_ascii_lowercase().as_str())
}

fn a_label(text: &str) {
    let (user, app) = (Username::parse(text), AppName::parse(text));
    assert_eq!(user.is_ok(), is_label(text), "{text:?}: {user:?}");
    assert_eq!(user.as_ref().map(Username::as_str), app.as_ref().map(AppName::as_str), "both are labels");
    let json = serde_json::from_value::<Username>(text.into());
    assert_eq!(json.ok(), user.clone().ok(), "{text:?}: JSON is no way around it");
    if let Ok(user) = user {
        assert_eq!(user.as_str(), text.to_ascii_lowercase());
        assert_eq!(Username::parse(user.as_str()), Ok(user.clone()), "what was accepted is stable");
        assert!(Hostname::parse(user.as_str()).is_ok() && ContainerName::parse(user.as_str()).is_ok(), "{user}");
    }
}

/// What may stand in haproxy.cfg, and in a line of its map.
fn harmless(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
}

fn a_host(text: &str) {
    let Ok(host) = Hostname::parse(text) else { return };
    let text = host.as_str();
    assert!(harmless(text) && (1..=253).contains(&text.len()), "{text:?}");
    assert!(text.split('.').all(|label| (1..=63).contains(&label.len())), "{text:?}");
    assert_eq!(Hostname::parse(text).as_ref(), Ok(&host), "what was accepted is stable");
}

fn an_email(text: &str) {
    let Ok(email) = Email::parse(text) else { return };
    assert_eq!(email.as_str(), text, "kept as written");
    let (local, domain) = text.rsplit_once('@').unwrap_or_default();
    assert!(text.len() <= 254 && (1..=64).contains(&local.len()), "{text:?}");
    assert!(domain.contains('.') && Hostname::parse(domain).is_ok(), "{text:?}");
    // What would begin another line, address, header or element somewhere.
    let evil = |c: char| c.is_control() || c.is_whitespace() || "<>()[]\\,;:@\"".contains(c);
    assert!(!local.chars().any(evil), "{text:?}");
}

fn a_container(text: &str) {
    let Ok(name) = ContainerName::parse(text) else { return };
    // Docker's own rule is wider: [a-zA-Z0-9][a-zA-Z0-9_.-]+
    assert!(harmless(text) && !text.contains('.') && !text.starts_with('-') && text.len() <= 127, "{text:?}");
    assert_eq!(name.as_str(), text);
}

fn a_custom_domain(text: &str, domain: &Hostname) {
    let extra = extra_host(text, domain);
    if let Ok(extra) = &extra {
        assert_eq!(Hostname::parse(text).as_ref(), Ok(extra));
        assert!(!belongs_to(extra, domain) && extra.as_str().contains('.'), "{extra} of {domain}");
        assert_eq!(extra_host(extra.as_str(), domain).as_ref(), Ok(extra), "what was accepted is stable");
        // A browser goes there and nowhere else: to no address, and to no other spelling of it. What only
        // looks like punycode it refuses.
        let url = url::Url::parse(&format!("http://{extra}/"));
        let read = url.as_ref().map(url::Url::host);
        let puny = extra.as_str().split('.').any(|label| label.starts_with("xn--"));
        match read {
            Ok(host) => assert_eq!(host, Some(url::Host::Domain(extra.as_str()))),
            Err(error) => assert!(puny, "{extra}: {error}"),
        }
    }
}

fn a_pair(user: &Username, app: &AppName, domain: &Hostname) {
    let container = ContainerName::of(user, app);
    assert_eq!(ContainerName::parse(container.as_str()).as_ref(), Ok(&container), "of a pair");
    for (pattern, separator) in [(HostPattern::Nested, "."), (HostPattern::Flat, "--")] {
        match pattern.host(user, app, domain) {
            Ok(host) => {
                assert_eq!(Hostname::parse(host.as_str()).as_ref(), Ok(&host));
                assert!(belongs_to(&host, domain) && host != *domain);
                assert!(extra_host(host.as_str(), domain).is_err(), "what a pattern gives, nobody takes");
                // Nobody else's app can have it: the names can be read back from it.
                let above = host.as_str().strip_suffix(domain.as_str()).and_then(|above| above.strip_suffix('.'));
                let names = above.and_then(|above| above.split_once(separator));
                assert_eq!(names, Some((app.as_str(), user.as_str())), "{host}");
                // Nor does a browser make another name of it.
                if !domain.as_str().split('.').any(|label| label.starts_with("xn--")) {
                    let label = above.unwrap_or_default();
                    let url = url::Url::parse(&format!("http://{label}.example/"));
                    let read = url.as_ref().ok().and_then(url::Url::host_str);
                    assert_eq!(read, Some(format!("{label}.example").as_str()));
                    assert!(
                        !label.split('.').any(|label| label.starts_with("xn--")),
                        "{label} is shown as another name"
                    );
                }
            }
            Err(error) => {
                let label = app.as_str().len() + separator.len() + user.as_str().len();
                let too_long = label + 1 + domain.as_str().len() > 253 || (pattern == HostPattern::Flat && label > 63);
                let punycode = pattern == HostPattern::Flat && app.as_str() == "xn";
                let fits = match error {
                    NameError::TooLong { .. } => too_long,
                    NameError::Reserved => punycode,
                    _ => false,
                };
                assert!(fits, "{user} {app} {domain}: {error}");
            }
        }
    }
}
