//! Asking a node over HTTP whether it is ready, without an HTTP library.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// An answer to a plain GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// HTTP status code.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

/// Between two questions.
const POLL_INTERVAL: Duration = Duration::from_millis(25);
/// For one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// GETs a path from a node's HTTP port.
///
/// # Errors
/// If the node cannot be reached or does not answer in HTTP within two seconds.
pub async fn http_get(address: SocketAddr, path: &str) -> io::Result<HttpAnswer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).await?;
        Ok::<Vec<u8>, io::Error>(bytes)
    };
    let bytes = timeout(ANSWER_TIMEOUT, exchange)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))??;
    parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer"))
}

/// Asks a node's `/readyz` until it says yes, for `limit`, but at least once: a node that is ready
/// is found so however little time is left.
///
/// # Errors
/// What the node said last, if it did not become ready.
pub async fn wait_until_ready(address: SocketAddr, limit: Duration) -> Result<(), String> {
    let end = Instant::now() + limit;
    loop {
        let problem = match http_get(address, "/readyz").await {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(answer) => answer.body.trim().to_owned(),
            Err(error) => error.to_string(),
        };
        if end <= Instant::now() {
            return Err(problem);
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn parse(bytes: &[u8]) -> Option<HttpAnswer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let chunked = lines.any(|line| line.to_ascii_lowercase().starts_with("transfer-encoding:"));
    let body = if chunked { dechunk(body) } else { body.to_owned() };
    Some(HttpAnswer { status, body })
}

/// Joins the chunks of an HTTP/1.1 chunked body.
fn dechunk(mut body: &str) -> String {
    let mut joined = String::with_capacity(body.len());
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.split(';').next().unwrap_or(size).trim(), 16)
        else {
            break;
        };
        let Some(chunk) = rest.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        joined.push_str(chunk);
        body = rest.get(size..).and_then(|rest| rest.strip_prefix("\r\n")).unwrap_or_default();
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_answers_are_understood() {
        let plain = parse(b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nno leader\n").unwrap();
        assert_eq!(plain, HttpAnswer { status: 503, body: "no leader\n".to_owned() });
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap().body, "abcde");
    }

    /// A server that gives one answer to whoever asks.
    async fn serve(answer: &'static str) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_node_is_asked_once_even_when_no_time_is_left() {
        let ready = serve("HTTP/1.1 200 OK\r\n\r\nready\n").await;
        assert_eq!(wait_until_ready(ready, Duration::ZERO).await, Ok(()));
        let not_ready = serve("HTTP/1.1 503 Service Unavailable\r\n\r\nno leader\n").await;
        let said = wait_until_ready(not_ready, Duration::ZERO).await;
        assert_eq!(said, Err("no leader".to_owned()));
    }

    #[test]
    fn other_protocols_are_not_taken_for_http() {
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n\r\n"), None);
        assert_eq!(parse(b""), None);
    }
}
