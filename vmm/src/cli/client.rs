//! The few lines of HTTP that one call over a UNIX socket needs.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Makes one call on a connection of its own, which the server is told to close.
pub(super) fn call(socket: &Path, method: &str, call: &str, body: &[u8]) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    let head = format!(
        "{method} /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // A server that refuses a body early has answered all the same, so what it says is read in any case.
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let mut answer = Vec::new();
    let received = stream.read_to_end(&mut answer);
    parse(&answer).ok_or_else(|| {
        let unintelligible = || io::Error::new(io::ErrorKind::InvalidData, "the answer is no HTTP");
        sent.and(received.map(drop)).err().unwrap_or_else(unintelligible)
    })
}

/// Reads a whole answer; the body is what follows the head, as the connection is closed after it.
fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut status_line = head.lines().next()?.split(' ');
    if !status_line.next()?.starts_with("HTTP/1.") {
        return None;
    }
    Some(Answer {
        status: status_line.next()?.parse().ok()?,
        body: answer[end + 4..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_status_and_what_follows_the_head() {
        let answer = parse(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\n[\"\"]").unwrap();
        assert_eq!(
            answer,
            Answer {
                status: 404,
                body: b"[\"\"]".to_vec()
            }
        );
        assert_eq!(parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().body, b"");
    }

    #[test]
    fn what_is_no_http_is_no_answer() {
        for answer in [
            &b""[..],
            b"HTTP/1.1 200",
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 many\r\n\r\n",
            b"\xff\r\n\r\n",
        ] {
            assert_eq!(parse(answer), None);
        }
    }
}
