//! What commands print. A reader that has seen enough, such as `head`, is no error.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stdout};
use std::process::exit;

/// Prints a line.
pub(super) fn line(text: Arguments<'_>) {
    finish(writeln!(stdout(), "{text}"));
}

/// Prints a text as it is.
pub(super) fn text(text: &str) {
    finish(stdout().write_all(text.as_bytes()));
}

/// Ends the command when nobody reads on: there is nothing else that it could do.
fn finish(written: std::io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit(0),
        Err(error) => {
            eprintln!("haas: the output can't be written: {error}");
            exit(1);
        }
    }
}
