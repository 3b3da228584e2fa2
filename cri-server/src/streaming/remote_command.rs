//! What `exec` and `attach` have in common: the client's streams, the sizes of its terminal, and the word about the end.
//!
//! The versions of the protocol differ in that word: text about a failure and nothing otherwise at first, a Kubernetes
//! `Status` with the exit code from version 4 on.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    carrier::{Carrier, Input, Lost, Output},
    multiplex::Opened,
    websocket::Channels,
};

/// How long a client may take to open the streams it asked for.
const CREATION_LIMIT: Duration = Duration::from_secs(30);
/// Most bytes of a terminal's size, which has some twenty.
const SIZE_MAX: usize = 4 << 10;

/// Versions over SPDY, the newest first.
pub(super) const SPDY: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// Versions over WebSocket, the newest first.
pub(super) const WEBSOCKET: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Streams that a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// A client with its streams.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) carrier: Carrier,
    pub(super) stdin: Option<Input>,
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    pub(super) resize: Option<Input>,
    pub(super) word: Word,
}

/// Where and how the end is told.
#[derive(Debug)]
pub(super) struct Word {
    error: Output,
    /// Our side of stdin. Clients take its end for that of all, and stop sending.
    unused: Option<Output>,
    is_status: bool,
}

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A command's exit code, or 0 at the end of an attachment.
    Exit(u32),
    /// It could not be done.
    Failed(String),
}

impl Remote {
    /// Waits until the client has opened what it asked for.
    pub(super) async fn over_spdy(
        carrier: Carrier,
        mut streams: mpsc::Receiver<Opened>,
        wanted: Wanted,
        protocol: &str,
    ) -> Result<Self, Lost> {
        let has_resize = wanted.tty && matches!(protocol, "v4.channel.k8s.io" | "v3.channel.k8s.io");
        let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
        let deadline = Instant::now() + CREATION_LIMIT;
        while error.is_none()
            || wanted.stdin && stdin.is_none()
            || wanted.stdout && stdout.is_none()
            || wanted.stderr && stderr.is_none()
            || has_resize && resize.is_none()
        {
            let opened = tokio::select! {
                opened = timeout_at(deadline, streams.recv()) => opened.ok().flatten(),
                _ = carrier.lost() => None,
            };
            let Opened { headers, input, output, .. } = opened.ok_or(Lost)?;
            match headers.get("streamType") {
                Some("stdin") if wanted.stdin && stdin.is_none() => stdin = Some((input, output)),
                Some("stdout") if wanted.stdout && stdout.is_none() => stdout = Some(output),
                Some("stderr") if wanted.stderr && stderr.is_none() => stderr = Some(output),
                Some("error") if error.is_none() => error = Some(output),
                Some("resize") if has_resize && resize.is_none() => resize = Some(input),
                _ => output.reset().await?,
            }
        }
        let error = error.ok_or(Lost)?;
        let (stdin, unused) = stdin.unzip();
        let word = Word { error, unused, is_status: protocol == "v4.channel.k8s.io" };
        Ok(Self { carrier, stdin, stdout, stderr, resize, word })
    }

    /// Which channels the client sends on.
    pub(super) fn sends(wanted: Wanted) -> [bool; 5] {
        [wanted.stdin, false, false, false, wanted.tty]
    }

    /// Takes the channels.
    pub(super) async fn over_websocket(mut channels: Channels, wanted: Wanted, protocol: &str) -> Result<Self, Lost> {
        let output = |wanted: bool, channel| wanted.then(|| channels.output(channel));
        let (stdout, stderr) = (output(wanted.stdout, STDOUT), output(wanted.stderr, STDERR));
        let error = channels.output(ERROR);
        // As other servers do it: the client learns that it is connected.
        stdout.as_ref().or(stderr.as_ref()).unwrap_or(&error).send(Bytes::new()).await?;
        let (stdin, resize) = (channels.input(STDIN), channels.input(RESIZE));
        let word =
            Word { error, unused: None, is_status: matches!(protocol, "v5.channel.k8s.io" | "v4.channel.k8s.io") };
        Ok(Self { carrier: channels.carrier, stdin, stdout, stderr, resize, word })
    }
}

impl Word {
    /// Ends the outputs, tells the end, and hangs up.
    pub(super) async fn end(self, carrier: Carrier, outputs: [Option<Output>; 2], outcome: &Outcome) {
        let telling = async {
            for output in outputs.iter().flatten() {
                output.finish().await?;
            }
            if let Some(unused) = &self.unused {
                unused.finish().await?;
            }
            if let Some(text) = self.text(outcome) {
                self.error.send(text).await?;
            }
            self.error.finish().await
        };
        let told = tokio::select! {
            told = telling => told,
            () = carrier.given_up() => Err(Lost),
        };
        if told.is_ok() {
            carrier.close().await;
        }
    }

    fn text(&self, outcome: &Outcome) -> Option<Bytes> {
        let status = match outcome {
            Outcome::Exit(0) => json!({ "metadata": {}, "status": "Success" }),
            Outcome::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Outcome::Failed(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "code": 500,
            }),
        };
        if self.is_status {
            return Some(status.to_string().into());
        }
        status["message"].as_str().map(|message| Bytes::copy_from_slice(message.as_bytes()))
    }
}

/// Columns and rows of a terminal, as clients tell them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Size {
    pub(super) width: u16,
    pub(super) height: u16,
}

/// Reads sizes from JSON texts that follow each other.
#[derive(Debug)]
pub(super) struct Sizes {
    input: Input,
    text: BytesMut,
}

impl Sizes {
    pub(super) fn new(input: Input) -> Self {
        Self { input, text: BytesMut::new() }
    }

    /// The next size; [`None`] when none will come.
    pub(super) async fn next(&mut self) -> Option<Size> {
        loop {
            if let Some(size) = take_size(&mut self.text)? {
                return Some(size);
            }
            self.text.extend_from_slice(&self.input.next().await.ok()??);
        }
    }
}

/// Takes one size off the text; [`None`] if it is none.
fn take_size(text: &mut BytesMut) -> Option<Option<Size>> {
    if text.len() > SIZE_MAX {
        return None;
    }
    let mut sizes = serde_json::Deserializer::from_slice(text).into_iter();
    match sizes.next() {
        Some(Ok(size)) => {
            let _ = text.split_to(sizes.byte_offset());
            Some(Some(size))
        }
        Some(Err(error)) if !error.is_eof() => None,
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_as_the_version_has_it() {
        let (sender, _queue) = super::super::carrier::commands();
        let word = |is_status| Word { error: Output::new(3, sender.clone()), unused: None, is_status };
        let text =
            |is_status, outcome| word(is_status).text(&outcome).map(|text| String::from_utf8(text.to_vec()).unwrap());
        assert_eq!(text(false, Outcome::Exit(0)), None);
        let message = "command terminated with non-zero exit code: exit status 42";
        assert_eq!(text(false, Outcome::Exit(42)).as_deref(), Some(message));
        let status = |outcome| serde_json::from_str::<serde_json::Value>(&text(true, outcome).unwrap()).unwrap();
        assert_eq!(status(Outcome::Exit(0))["status"], "Success");
        let failure = status(Outcome::Exit(42));
        assert_eq!((&failure["status"], &failure["reason"]), (&json!("Failure"), &json!("NonZeroExitCode")));
        assert_eq!(failure["details"]["causes"], json!([{ "reason": "ExitCode", "message": "42" }]));
        let failure = status(Outcome::Failed("no luck".to_owned()));
        assert_eq!((&failure["reason"], &failure["code"]), (&json!("InternalError"), &json!(500)));
        assert!(failure["message"].as_str().unwrap().contains("no luck"));
    }

    #[test]
    fn sizes_are_read_however_they_are_cut() {
        let mut text = BytesMut::from(&b"{\"Width\":80,\"Height\":24}\n{\"Width\":1"[..]);
        assert_eq!(take_size(&mut text), Some(Some(Size { width: 80, height: 24 })));
        assert_eq!(take_size(&mut text), Some(None));
        text.extend_from_slice(b"00,\"Height\":50}\n");
        assert_eq!(take_size(&mut text), Some(Some(Size { width: 100, height: 50 })));
        assert_eq!(take_size(&mut text), Some(None));
        assert_eq!(take_size(&mut BytesMut::from(&b"{\"Width\":-1,\"Height\":0}"[..])), None);
        assert_eq!(take_size(&mut BytesMut::from(&b"hello"[..])), None);
        assert_eq!(take_size(&mut BytesMut::from(&vec![b' '; SIZE_MAX + 1][..])), None);
    }
}
