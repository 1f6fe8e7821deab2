//! Files with holes, as GNU tar writes them in a pax archive ("PAX Format, Version 1.0" of its
//! manual): a map of the content before the content, in blocks of its own.

use std::io::{self, ErrorKind, Read};

use super::{BLOCK, cut, invalid};

/// A stretch of a file that is no hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// How many a file may have: they are kept in memory, 16 bytes each.
pub(in super::super) const SEGMENTS_MAX: usize = 1024 * 1024;
/// A shorter hole is taken for the zeros that it reads as: whoever unpacks it makes holes of zeros again.
const HOLE: u64 = 4096;

/// The segments of a file, as they are found one after the other.
#[derive(Default)]
pub(in super::super) struct SegmentsBuilder(Vec<Segment>);

impl SegmentsBuilder {
    /// One more; false if there are too many.
    pub(in super::super) fn push(&mut self, offset: u64, end: u64) -> bool {
        let next = Segment { offset, length: end.saturating_sub(offset) };
        match self.0.last_mut() {
            Some(last) if next.offset - (last.offset + last.length) < HOLE => {
                last.length = next.offset + next.length - last.offset;
            }
            _ => self.0.push(next),
        }
        self.0.len() <= SEGMENTS_MAX
    }

    pub(in super::super) fn finish(self) -> Vec<Segment> {
        self.0
    }
}

/// The map as it stands before the content: decimal numbers, a line each, in whole blocks.
pub(super) fn map(segments: &[Segment]) -> Vec<u8> {
    let numbers = segments.iter().flat_map(|segment| [segment.offset, segment.length]);
    let mut text = String::new();
    for number in [segments.len() as u64].into_iter().chain(numbers) {
        text.push_str(&number.to_string());
        text.push('\n');
    }
    let mut map = text.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// What an entry's records say of its holes.
#[derive(Default)]
pub(super) struct Described {
    pub name: Option<Vec<u8>>,
    real_size: Option<u64>,
    version: (Option<u64>, Option<u64>),
}

impl Described {
    /// A record, by what follows `GNU.sparse.` in its key.
    pub(super) fn record(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        match name {
            b"name" => self.name = Some(value.to_vec()),
            b"realsize" => self.real_size = Some(super::pax::number(value)?),
            b"major" => self.version.0 = Some(super::pax::number(value)?),
            b"minor" => self.version.1 = Some(super::pax::number(value)?),
            // Older versions have their map in other records.
            _ => return Err(invalid("it is a sparse file of an unknown kind")),
        }
        Ok(())
    }

    /// How long the file is, and where its content is; `from` is left at its first byte.
    pub(super) fn segments(self, from: &mut dyn Read, stored: u64) -> io::Result<(u64, Vec<Segment>)> {
        let Some(size) = self.real_size else {
            if self.version != (None, None) || self.name.is_some() {
                return Err(invalid("it is a sparse file without a size"));
            }
            return Ok((stored, if stored == 0 { vec![] } else { vec![Segment { offset: 0, length: stored }] }));
        };
        if self.version != (Some(1), Some(0)) {
            return Err(invalid("it is a sparse file of an unknown kind"));
        }
        let mut numbers = Numbers { from, block: [0; BLOCK], at: BLOCK, taken: 0 };
        let count = numbers.next()?;
        if count > SEGMENTS_MAX as u64 {
            return Err(invalid(format!("it has more than {SEGMENTS_MAX} holes")));
        }
        let (mut segments, mut end, mut total) = (Vec::new(), 0_u64, 0_u64);
        for _ in 0..count {
            let (offset, length) = (numbers.next()?, numbers.next()?);
            let next = offset.checked_add(length).filter(|next| *next <= size && offset >= end);
            end = next.ok_or_else(|| invalid("its holes make no sense"))?;
            total += length;
            segments.push(Segment { offset, length });
        }
        if total.checked_add(numbers.taken) != Some(stored) {
            return Err(invalid("its content is not as long as its holes leave it"));
        }
        Ok((size, segments))
    }
}

struct Numbers<'a> {
    from: &'a mut dyn Read,
    block: [u8; BLOCK],
    at: usize,
    taken: u64,
}

impl Numbers<'_> {
    fn next(&mut self) -> io::Result<u64> {
        let mut number: Option<u64> = None;
        loop {
            if self.at == BLOCK {
                self.from.read_exact(&mut self.block).map_err(|error| match error.kind() {
                    ErrorKind::UnexpectedEof => cut("it ends in the map of its holes"),
                    _ => error,
                })?;
                self.at = 0;
                self.taken += BLOCK as u64;
            }
            let byte = self.block[self.at];
            self.at += 1;
            let bad = || invalid("the map of its holes makes no sense");
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let next = number.unwrap_or(0).checked_mul(10).and_then(|tens| tens.checked_add(digit));
                    number = Some(next.ok_or_else(bad)?);
                }
                b'\n' => return number.ok_or_else(bad),
                _ => return Err(bad()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn holes_of_a_block_are_kept_shorter_ones_are_not_and_too_many_are_told() {
        let segments = |pairs: &[(u64, u64)]| {
            let mut builder = SegmentsBuilder::default();
            assert!(pairs.iter().all(|(from, to)| builder.push(*from, *to)));
            builder.finish().into_iter().map(|s| (s.offset, s.length)).collect::<Vec<_>>()
        };
        assert_eq!(segments(&[(0, 4096), (8192, 8193), (9216, 10_000)]), [(0, 4096), (8192, 1808)]);
        let mut builder = SegmentsBuilder::default();
        let most = SEGMENTS_MAX as u64;
        assert!(
            (0..most).all(|n| builder.push(n * 8192, n * 8192 + 4096)) && !builder.push(most * 8192, most * 8192 + 1)
        );
    }

    proptest! {
        #[test]
        fn a_map_is_read_as_it_was_written(lengths in proptest::collection::vec((1_u64..1 << 40, 0_u64..100_000), 0..300)) {
            let (mut end, mut segments) = (0, Vec::new());
            for (hole, length) in lengths {
                segments.push(Segment { offset: end + hole, length });
                end += hole + length;
            }
            let map = map(&segments);
            let stored = map.len() as u64 + segments.iter().map(|segment| segment.length).sum::<u64>();
            let described = Described { name: None, real_size: Some(end + 7), version: (Some(1), Some(0)) };
            prop_assert_eq!(described.segments(&mut map.as_slice(), stored).unwrap(), (end + 7, segments));
        }
    }
}
