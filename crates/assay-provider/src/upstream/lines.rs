//! The lines of an HTTP body as they arrive, bounded: a server that sends lines without end is cut off, not believed.

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};

/// Why there is no further line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    /// A longer line than any engine writes.
    #[error("the engine sent a line of more than {0} bytes")]
    Long(usize),
    /// More than the answer can need.
    #[error("the engine sent more than {0} bytes for this answer")]
    Endless(u64),
    /// The connection.
    #[error("the engine's answer broke off: {0}")]
    Broken(String),
}

/// Reads lines; the bytes of one frame and of one line are all that is held.
pub(super) struct Lines<B> {
    body: B,
    frame: Bytes,
    line: Vec<u8>,
    line_max: usize,
    left: u64,
    bytes_max: u64,
}

impl<B: Body<Data = Bytes> + Unpin> Lines<B>
where
    B::Error: std::fmt::Display,
{
    pub fn new(body: B, line_max: usize, bytes_max: u64) -> Self {
        Self { body, frame: Bytes::new(), line: Vec::new(), line_max, left: bytes_max, bytes_max }
    }

    /// The next line without its end; `None` at the end of the body. A call that is dropped loses nothing.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        loop {
            let end = self.frame.iter().position(|&byte| byte == b'\n');
            let taken = self.frame.split_to(end.unwrap_or(self.frame.len()));
            if self.line.len() + taken.len() > self.line_max {
                return Err(LineError::Long(self.line_max));
            }
            self.line.extend_from_slice(&taken);
            if end.is_some() {
                self.frame = self.frame.slice(1..);
                let mut line = std::mem::take(&mut self.line);
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some(line));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    self.left = self.left.checked_sub(data.len() as u64).ok_or(LineError::Endless(self.bytes_max))?;
                    self.frame = data;
                }
                Some(Err(error)) => return Err(LineError::Broken(error.to_string())),
                None if self.line.is_empty() => return Ok(None),
                None => return Ok(Some(std::mem::take(&mut self.line))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    async fn read(bytes: &'static [u8], line_max: usize, bytes_max: u64) -> (Vec<String>, Option<String>) {
        let mut lines = Lines::new(Full::new(Bytes::from_static(bytes)), line_max, bytes_max);
        let mut read = vec![];
        loop {
            match lines.next().await {
                Ok(Some(line)) => read.push(String::from_utf8(line).unwrap()),
                Ok(None) => return (read, None),
                Err(error) => return (read, Some(error.to_string())),
            }
        }
    }

    #[tokio::test]
    async fn lines_end_with_either_end_and_the_last_one_with_the_body() {
        let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(read(b"a\r\n\nbc\nd", 10, 100).await, (text(&["a", "", "bc", "d"]), None));
        assert_eq!(read(b"", 10, 100).await, (vec![], None));
    }

    #[tokio::test]
    async fn a_giant_line_and_an_endless_body_are_cut_off() {
        let (read_lines, error) = read(b"ab\n0123456789x\n", 10, 100).await;
        assert_eq!(
            (read_lines, error),
            (vec!["ab".into()], Some("the engine sent a line of more than 10 bytes".into()))
        );
        let (_, error) = read(b"a\na\na\na\n", 10, 7).await;
        assert_eq!(error.as_deref(), Some("the engine sent more than 7 bytes for this answer"));
    }
}
