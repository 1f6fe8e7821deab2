//! How much one cause may write. Events are never removed, so their number has to be bounded where
//! they are written.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

/// Counts the events of one cause, and refuses those past its bound.
pub trait Budget: fmt::Debug + Send + Sync {
    /// Counts one more event.
    ///
    /// # Errors
    /// [`Overspent`] when it must not be written; then nothing is counted.
    fn spend(&self) -> Result<(), Overspent>;
}

/// Why an event, and the change that it belongs to, is not written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{bound}")]
pub struct Overspent {
    /// The bound, in a few words.
    pub bound: String,
    /// How long until there is room for one more.
    pub wait: Duration,
}
