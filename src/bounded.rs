//! Text that tenants and engines write, cut to what Haas keeps of it. A row, an event or a report is loaded
//! for every request about an app, so each of them has a bound in bytes.

use serde_json::Value;

/// Bytes of an error that are kept: an archive's words about a file name, in escapes, fit.
pub(crate) const ERROR_MAX: usize = 2 * 1024;
/// Bytes of a failed Hoodie's log that are kept: its end.
pub(crate) const LOG_MAX: usize = 16 * 1024;
/// Bytes of what is reported of one part: HAProxy's words about a configuration that it refuses fit.
pub(crate) const REPORT_MAX: usize = 8 * 1024;
/// Bytes of an event's particulars, as JSON.
pub(crate) const DETAIL_MAX: usize = 16 * 1024;
/// Bytes of an event's other columns, each.
pub(crate) const WORD_MAX: usize = 256;

const CUT: &str = "…";

/// The beginning of a text, in at most `most` bytes; a cut ends with `…`. NUL is left out, which Postgres
/// can't hold.
pub(crate) fn bounded(text: &str, most: usize) -> String {
    // More than that is not needed to see whether it is too long.
    let mut kept: String = text.chars().filter(|c| *c != '\0').take(most + 1).collect();
    if kept.len() > most {
        kept.truncate(kept.floor_char_boundary(most.saturating_sub(CUT.len())));
        kept.push_str(CUT);
    }
    kept
}

/// The end of a text, in at most `most` bytes.
pub(crate) fn last(text: &str, most: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(most))..]
}

/// An event's particulars: each text in them is bounded, and so is the whole.
pub(crate) fn bounded_detail(mut detail: Value) -> Value {
    bound_texts(&mut detail);
    let bytes = detail.to_string().len();
    if bytes > DETAIL_MAX { serde_json::json!({ "left out": format!("{bytes} bytes") }) } else { detail }
}

fn bound_texts(value: &mut Value) {
    match value {
        Value::String(text) => *text = bounded(text, ERROR_MAX),
        Value::Array(values) => values.iter_mut().for_each(bound_texts),
        Value::Object(fields) => fields.values_mut().for_each(bound_texts),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn a_beginning_is_never_longer_and_says_where_it_was_cut(text in "(a|é|…|🦀|\0){0,40}", most in 3..60_usize) {
            let whole = text.replace('\0', "");
            let kept = bounded(&text, most);
            prop_assert!(kept.len() <= most);
            if whole.len() <= most {
                prop_assert_eq!(&kept, &whole);
            } else {
                let beginning = kept.strip_suffix(CUT).unwrap();
                prop_assert!(whole.starts_with(beginning));
                // No character more would have fitted.
                let next = whole[beginning.len()..].chars().next().unwrap();
                prop_assert!(kept.len() + next.len_utf8() > most);
            }
            prop_assert_eq!(bounded(&kept, most), kept, "what is bounded stays as it is");
        }

        #[test]
        fn an_end_is_never_longer_and_as_long_as_it_can_be(text in "(a|é|…|🦀){0,40}", most in 0..60_usize) {
            let kept = last(&text, most);
            prop_assert!(kept.len() <= most && text.ends_with(kept));
            let before = text[..text.len() - kept.len()].chars().next_back();
            prop_assert!(before.is_none_or(|c| kept.len() + c.len_utf8() > most));
        }

        #[test]
        fn particulars_are_never_longer(texts in prop::collection::vec("(a|\u{1}|é){0,3000}", 0..12)) {
            let kept = bounded_detail(json!({ "error": texts, "nested": { "more": texts.first() } }));
            prop_assert!(kept.to_string().len() <= DETAIL_MAX);
        }
    }

    #[test]
    fn particulars_of_the_usual_size_stay_as_they_are() {
        let detail = json!({ "error": "it did not answer", "generation": 3, "hosts": ["a.example", null] });
        assert_eq!(bounded_detail(detail.clone()), detail);
        let long = bounded_detail(json!({ "error": "x".repeat(100_000), "port": 5521 }));
        assert_eq!((long["error"].as_str().unwrap().len(), &long["port"]), (ERROR_MAX, &json!(5521)));
        assert!(bounded_detail(json!(vec!["x".repeat(2000); 20]))["left out"].is_string());
    }
}
