//! The server's responses to HTTP requests: the lines of one that is still coming, and refusals.

use anyhow::Context;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use serde_json::Value;

use super::connection::Connection;

/// A response that is read line by line while it comes.
pub struct Lines {
    connection: Connection,
    body: Incoming,
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
}

impl Lines {
    pub(super) fn new(connection: Connection, body: Incoming) -> Self {
        Self { connection, body, rest: Vec::new() }
    }

    /// Reads the next piece of the response and visits the lines that it completes, without their ends and without
    /// empty ones. Returns `false` after the last piece.
    pub async fn read(&mut self, visit: impl FnMut(&str)) -> anyhow::Result<bool> {
        let frame = self.connection.drive(self.body.frame()).await.transpose().context("read the response")?;
        let is_last = frame.is_none();
        match frame {
            Some(frame) => self.rest.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            None => self.rest.push(b'\n'),
        }
        let complete = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines = str::from_utf8(&self.rest[..complete]).context("the response is not UTF-8")?;
        lines.lines().filter(|line| !line.is_empty()).for_each(visit);
        self.rest.drain(..complete);
        Ok(!is_last)
    }
}

/// The server answered with an error status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server refused: {status}{}{detail}", if detail.is_empty() { "" } else { ": " })]
pub struct Refused {
    pub status: StatusCode,
    /// The explanation in the response's body.
    pub detail: String,
}

impl Refused {
    pub(super) fn new(status: StatusCode, body: &[u8]) -> Self {
        let detail = match serde_json::from_slice::<Value>(body) {
            Ok(mut problem) => match problem["detail"].take() {
                Value::String(detail) => detail,
                Value::Array(faults) => faults.iter().map(fault).collect::<Vec<_>>().join("; "),
                _ => problem.to_string(),
            },
            Err(_) => String::from_utf8_lossy(body).trim().into(),
        };
        Self { status, detail }
    }

    /// Whether the server would refuse the same request again.
    pub fn is_final(&self) -> bool {
        let temporary = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
        !self.status.is_server_error() && !temporary.contains(&self.status)
    }
}

/// One element of the `detail` of a 422: the path to the faulty value, and what is wrong with it.
fn fault(fault: &Value) -> String {
    let path = fault["loc"].as_array().into_iter().flatten().map(|part| match part {
        Value::String(name) => name.clone(),
        other => other.to_string(),
    });
    format!("{}: {}", path.collect::<Vec<_>>().join("."), fault["msg"].as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_the_detail_of_the_response() {
        let check = |body: &str, text: &str| {
            let refused = Refused::new(StatusCode::BAD_REQUEST, body.as_bytes());
            assert_eq!(refused.to_string(), format!("the server refused: 400 Bad Request{text}"));
        };
        check(r#"{"detail":"Bad time"}"#, ": Bad time");
        check(
            r#"{"detail":[{"loc":["body",3,"source"],"msg":"is missing","type":"missing"},{"loc":[],"msg":"odd"}]}"#,
            ": body.3.source: is missing; : odd",
        );
        check("no JSON\n", ": no JSON");
        check("", "");
    }
}
