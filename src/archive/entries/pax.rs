//! Records of a pax header: `LENGTH KEY=VALUE\n`, the length that of the whole record. Values, and
//! the names in some keys, hold any bytes.

use std::io;

use super::{Time, invalid};

/// What the key of an extended attribute begins with, as star and GNU tar have it.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";

const NANOSECONDS: i128 = 1_000_000_000;

/// The records of a header, one after the other.
pub(super) fn records(mut rest: &[u8]) -> impl Iterator<Item = io::Result<(&[u8], &[u8])>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((key, value, after)) = record(rest) else {
            rest = &[];
            return Some(Err(invalid("a malformed pax record")));
        };
        rest = after;
        Some(Ok((key, value)))
    })
}

/// The first record's key and value, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (whole, after) = bytes.split_at_checked(length)?;
    let text = whole.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|byte| *byte == b'=')?;
    Some((&text[..equals], &text[equals + 1..], after))
}

/// Appends a record.
pub(super) fn push(to: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    // The length counts its own digits.
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    to.extend_from_slice(length.to_string().as_bytes());
    to.push(b' ');
    to.extend_from_slice(key);
    to.push(b'=');
    to.extend_from_slice(value);
    to.push(b'\n');
}

/// A name for use in a key, which ends at the first `=`: GNU tar has the same two escapes.
pub(super) fn escaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'%' => out.extend_from_slice(b"%25"),
            b'=' => out.extend_from_slice(b"%3D"),
            other => out.push(*other),
        }
    }
    out
}

pub(super) fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match (first, after) {
            (b'%', [b'2', b'5', after @ ..]) => (b'%', after),
            (b'%', [b'3', b'D', after @ ..]) => (b'=', after),
            _ => (*first, after),
        };
        out.push(byte);
        rest = after;
    }
    out
}

fn word(value: &[u8]) -> io::Result<&str> {
    std::str::from_utf8(value).map_err(|_| invalid("a pax record that should be a number"))
}

pub(super) fn number(value: &[u8]) -> io::Result<u64> {
    word(value)?.parse().map_err(|_| invalid("a pax record that should be a number"))
}

/// `HAAS.flags`, in hexadecimal.
pub(super) fn flags(value: &[u8]) -> io::Result<u32> {
    u32::from_str_radix(word(value)?, 16).map_err(|_| invalid("flags that are no number"))
}

/// Seconds with a fraction, whose sign stands before all of it.
pub(super) fn time(value: &[u8]) -> io::Result<Time> {
    let bad = || invalid("a time that is no number");
    let text = word(value)?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !(whole.bytes().chain(fraction.bytes())).all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let seconds: i128 = whole.parse::<u64>().map_err(|_| bad())?.into();
    let nanoseconds: i128 = format!("{fraction:0<9.9}").parse::<u32>().map_err(|_| bad())?.into();
    let all = seconds * NANOSECONDS + nanoseconds;
    let all = if negative { -all } else { all };
    let seconds = i64::try_from(all.div_euclid(NANOSECONDS)).map_err(|_| bad())?;
    Ok(Time { seconds, nanoseconds: u32::try_from(all.rem_euclid(NANOSECONDS)).unwrap_or_default() })
}

/// The same, as it is read by [`time`].
pub(super) fn time_text(time: Time) -> String {
    let all = i128::from(time.seconds) * NANOSECONDS + i128::from(time.nanoseconds);
    let (sign, all) = if all < 0 { ("-", -all) } else { ("", all) };
    let (seconds, nanoseconds) = (all / NANOSECONDS, all % NANOSECONDS);
    if nanoseconds == 0 { format!("{sign}{seconds}") } else { format!("{sign}{seconds}.{nanoseconds:09}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_hold_any_bytes(all in proptest::collection::vec(("[a-z.]{1,12}", any::<Vec<u8>>()), 0..6)) {
            let mut header = Vec::new();
            for (key, value) in &all {
                push(&mut header, key.as_bytes(), value);
            }
            let read: Vec<(Vec<u8>, Vec<u8>)> =
                records(&header).map(|record| record.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect::<io::Result<_>>().unwrap();
            let given: Vec<(Vec<u8>, Vec<u8>)> = all.into_iter().map(|(key, value)| (key.into_bytes(), value)).collect();
            prop_assert_eq!(read, given);
        }

        #[test]
        fn names_of_attributes_hold_any_bytes(name in any::<Vec<u8>>()) {
            prop_assert!(!escaped(&name).contains(&b'='));
            prop_assert_eq!(unescaped(&escaped(&name)), name);
        }

        #[test]
        fn every_moment_is_read_as_it_was_written(seconds in any::<i64>(), nanoseconds in 0..1_000_000_000_u32) {
            let moment = Time { seconds, nanoseconds };
            prop_assert_eq!(time(time_text(moment).as_bytes()).unwrap(), moment);
        }

        #[test]
        fn no_header_is_too_much(bytes in any::<Vec<u8>>()) {
            let mut left = bytes.len();
            for record in records(&bytes) {
                prop_assert!(left > 0);
                left -= record.map_or(left, |(key, value)| key.len() + value.len());
            }
        }
    }

    #[test]
    fn times_have_their_sign_before_all_of_them() {
        let moment = |seconds, nanoseconds| time_text(Time { seconds, nanoseconds });
        assert_eq!(
            [moment(0, 0), moment(-1, 0), moment(-2, 500_000_000), moment(7, 1)],
            ["0", "-1", "-1.500000000", "7.000000001"]
        );
        for bad in ["", "-", "1.x", "1e3", "+1", "--1", "99999999999999999999", "1.-5"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(time(b"1.1234567899").unwrap(), Time { seconds: 1, nanoseconds: 123_456_789 });
    }
}
