//! Lists as streams of messages that every client takes, however long they are.

use futures::stream::{self, BoxStream};
use prost::Message;
use tonic::{Response, Status};

/// A stream of messages, each with a part of a list.
pub(super) type Chunks<T> = BoxStream<'static, Result<T, Status>>;

/// How many bytes of items go into one message: clients take sixteen times as much, and the fewer lie ready, the better.
const CHUNK: usize = 1 << 20;

/// Answers a list in parts; `message` puts a part into its message.
pub(super) fn chunks<I, T, F>(rpc: &'static str, items: Vec<I>, message: F) -> Response<Chunks<T>>
where
    I: Message + 'static,
    T: Send + 'static,
    F: Fn(Vec<I>) -> T + Send + 'static,
{
    tracing::debug!(rpc, "done");
    Response::new(Box::pin(stream::iter(split(items, CHUNK).map(move |part| Ok(message(part))))))
}

/// Parts of at most `limit` encoded bytes. An item that is larger than that goes alone.
fn split<I: Message>(items: Vec<I>, limit: usize) -> impl Iterator<Item = Vec<I>> {
    let mut items = items.into_iter().peekable();
    std::iter::from_fn(move || {
        let first = items.next()?;
        let mut size = framed(&first);
        let mut part = vec![first];
        while let Some(next) = items.next_if(|next| size + framed(next) <= limit) {
            size += framed(&next);
            part.push(next);
        }
        Some(part)
    })
}

/// Bytes of an item in its message: its own, and a tag and a length before it.
fn framed(item: &impl Message) -> usize {
    let length = item.encoded_len();
    1 + prost::length_delimiter_len(length) + length
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::{PodSandbox, StreamPodSandboxesResponse};

    use super::*;

    #[test]
    fn parts_keep_the_order_and_the_limit() {
        let item = |length: usize| PodSandbox { id: "x".repeat(length), ..Default::default() };
        let lengths = [10, 20, 30, 500, 5, 0, 90, 1];
        let parts: Vec<_> = split(lengths.map(item).to_vec(), 100).collect();
        let shape: Vec<Vec<usize>> = parts.iter().map(|part| part.iter().map(|item| item.id.len()).collect()).collect();
        assert_eq!(shape, [vec![10, 20, 30], vec![500], vec![5, 0], vec![90, 1]]);
        for part in parts.into_iter().filter(|part| part.len() > 1) {
            assert!(StreamPodSandboxesResponse { pod_sandboxes: part }.encoded_len() <= 100);
        }
        assert_eq!(split(Vec::<PodSandbox>::new(), 100).count(), 0);
    }
}
