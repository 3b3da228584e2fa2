//! As much HTTP/1.1 as tests need, on blocking sockets: one request per connection as a client, and reading a request's
//! head as a server. Blocking on purpose: the caller's thread is in the network namespace of its node.

use std::{
    io::{BufRead, BufReader, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};

/// How long a server may stay silent before a test gives it up.
const LIMIT: Duration = Duration::from_secs(20);

/// A request to send.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// A request without headers or body.
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds credentials for basic authentication.
    pub fn basic(self, user: &str, password: &str) -> Self {
        let credentials = BASE64_STANDARD.encode(format!("{user}:{password}"));
        self.header("authorization", &format!("Basic {credentials}"))
    }

    /// Sets the body.
    pub fn body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The body as text, for messages and pages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one request to `host:port` and reads the whole answer.
pub fn exchange(address: &str, request: &Request) -> Result<Response> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut head = format!("{} {} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n", request.method, request.path);
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", request.body.len()));
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&request.body)).context("send the request")?;

    let mut reader = BufReader::new(stream);
    let first = line(&mut reader).context("read the status line")?;
    let status =
        first.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| format!("status line {first:?}"))?;
    let headers = headers(&mut reader)?;
    let body = match (request.method.as_str(), find(&headers, "content-length"), find(&headers, "transfer-encoding")) {
        ("HEAD", ..) => Vec::new(),
        (_, _, Some("chunked")) => chunks(&mut reader)?,
        (_, Some(length), _) => {
            let mut body = vec![0; length.parse().context("content-length")?];
            reader.read_exact(&mut body).context("read the body")?;
            body
        }
        _ => {
            let mut body = Vec::new();
            reader.read_to_end(&mut body).context("read the body")?;
            body
        }
    };
    Ok(Response { status, headers, body })
}

/// Fetches a page; anything but 200 is an error.
pub fn get(address: &str, path: &str) -> Result<String> {
    let response = exchange(address, &Request::new("GET", path))?;
    if response.status != 200 {
        bail!("GET http://{address}{path}: {} {}", response.status, response.text());
    }
    Ok(response.text())
}

/// Method, path and headers of a request that a server received; `None` at the end of the connection.
pub fn read_head(reader: &mut impl BufRead) -> Result<Option<Head>> {
    let first = line(reader)?;
    if first.is_empty() {
        return Ok(None);
    }
    let mut words = first.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else { bail!("request line {first:?}") };
    let (method, path) = (method.to_owned(), path.to_owned());
    Ok(Some(Head { method, path, headers: headers(reader)? }))
}

/// The head of a received request.
#[derive(Debug, Clone)]
pub struct Head {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// With the query.
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// The first header of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut text = String::new();
    reader.read_line(&mut text)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn headers(reader: &mut impl BufRead) -> Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let text = line(reader)?;
        let Some((name, value)) = text.split_once(':') else { return Ok(headers) };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn chunks(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(reader)?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or(""), 16)
            .with_context(|| format!("chunk size {size:?}"))?;
        let start = body.len();
        body.resize(start + size, 0);
        reader.read_exact(&mut body[start..]).context("read a chunk")?;
        line(reader)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}
