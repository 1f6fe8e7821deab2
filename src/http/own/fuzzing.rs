//! What the sign-on promises, for any link, any path, and any answer of an app's.

use std::fmt::Write as _;

use super::{SIGN_ON, is_own, login, token};
use crate::manifest::Token;

/// What HAProxy sends here (`templates/haproxy.cfg.tera`): one of each, one after the other, in any case.
const PATTERN: [(&str, &[&str]); 6] = [
    ("(/|\\\\|%2f|%5c)", &["/", "\\", "%2f", "%5c"]),
    ("(\\.|%2e)", &[".", "%2e"]),
    ("(h|%[46]8)", &["h", "%48", "%68"]),
    ("(a|%[46]1)", &["a", "%41", "%61"]),
    ("(a|%[46]1)", &["a", "%41", "%61"]),
    ("(s|%[57]3)", &["s", "%53", "%73"]),
];

/// Three lines: a link's query, a path, and what an app answers to the login, which may have more lines.
///
/// # Panics
/// When a token, a path or a session is taken for what it must not be.
pub fn sso_token(data: &[u8]) {
    let mut lines = data.splitn(3, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (query, path, answer) = (line(), line(), line());
    if let Ok(query) = std::str::from_utf8(query) {
        a_query(query);
    }
    if let Ok(path) = std::str::from_utf8(path) {
        a_path(path);
    }
    an_answer(answer);
}

fn a_query(query: &str) {
    assert!(Token::parse(query).is_none_or(|token| token.as_str() == query), "as it stands in the link");
    let Some(token_of_it) = token(query) else { return };
    let text = token_of_it.as_str();
    let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    assert!(digits && text.len() == 64, "{text}");
    assert!(!format!("{token_of_it:?}").contains(text), "it is never shown");
    let same = |query: &str| token(query).is_some_and(|token| token.as_str() == text);
    assert!(same(&format!("token={text}")) && same(&format!("{query}&x=token")), "{query}");
    // With two of them, who is to say which one counts?
    for twice in [format!("{query}&token={text}"), format!("token&{query}"), format!("%74oken=&{query}")] {
        assert!(token(&twice).is_none(), "{twice}");
    }
    for none in [text.to_ascii_uppercase(), format!("{text}0"), text[1..].to_owned(), format!("{text}%00")] {
        assert!(none == text || token(&format!("token={none}")).is_none(), "{none}");
    }
}

fn a_path(path: &str) {
    if !path.starts_with('/') || path.contains(['?', '#']) {
        return;
    }
    let own = is_own(path);
    assert!(!own || is_sent_here(path), "ours, and HAProxy gives it to the app: {path:?}");
    // However it is spelled.
    let escaped = path.bytes().fold(String::new(), |mut escaped, byte| {
        let _ = write!(escaped, "%{byte:02x}");
        escaped
    });
    // One that has escapes has others then: they are decoded once.
    let spellings = [format!("/{path}"), format!("/.{path}"), format!("/x/..{path}"), format!("\\.\\{path}")];
    for spelling in spellings.iter().chain((!path.contains('%')).then_some(&escaped)) {
        assert_eq!(is_own(spelling), own, "{spelling:?} for {path:?}");
    }
    // Below it all is.
    assert!(is_own(&format!("{SIGN_ON}{path}")) && is_sent_here(&format!("{SIGN_ON}{path}")), "{path:?}");
}

fn is_sent_here(path: &str) -> bool {
    fn continues(rest: &str, pattern: &[(&str, &[&str])]) -> bool {
        let Some(((_, spellings), pattern)) = pattern.split_first() else { return true };
        spellings.iter().any(|spelling| rest.strip_prefix(spelling).is_some_and(|rest| continues(rest, pattern)))
    }
    let path = path.to_ascii_lowercase();
    path.char_indices().any(|(at, _)| continues(&path[at..], &PATTERN))
}

fn an_answer(answer: &[u8]) {
    let Ok(session) = login::session(answer) else { return };
    let id = session.as_str();
    // It stands in a script, in a string in a string.
    let harmless = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    assert!(harmless && (1..=256).contains(&id.len()), "{id:?}");
    let document: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    assert_eq!(document["data"]["id"], id, "it is the one that was said");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_the_templates() {
        let pattern: String = PATTERN.iter().map(|(text, _)| *text).collect();
        let template = include_str!("../../../templates/haproxy.cfg.tera");
        assert!(template.contains(&format!("path -m reg -i '{pattern}'")), "{pattern}");
        for path in ["/.haas/", "/x/.HAAS", "/%2e%48%61a%53", "\\.haas"] {
            assert!(is_sent_here(path), "{path}");
        }
        assert!(!is_sent_here("/haas/") && !is_sent_here("/.haa/s"));
    }
}
