//! What happens to containers, told to whoever listens (`GetContainerEvents`).
//!
//! An event is told after the state that it speaks of is published, and carries the statuses of the pod and of all its
//! containers as they are then: never older than its time. Times rise strictly, over all pods, since the kubelet takes
//! them for the age of what it knows.
//!
//! Every listener has a queue of its own with an end. One that does not keep up is cut off with an error: it then looks
//! at everything and listens anew, while a queue without an end would only hide that it is late. Nobody waits for it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use futures::{Stream, stream};
use tokio::sync::mpsc;
use vaina_proto::cri::{ContainerEventResponse as Event, ContainerEventType};

use crate::{
    app::App,
    container::{self, Container},
    error::{Classify, Kind},
    sandbox::{self, Sandbox},
    work::{lock, now},
};

/// How far behind a listener may be.
const QUEUE: usize = 256;

/// All listeners.
#[derive(Debug, Default)]
pub struct Events {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Unix nanoseconds of the last event.
    last: i64,
    listeners: Vec<Listener>,
}

#[derive(Debug)]
struct Listener {
    queue: mpsc::Sender<Arc<Event>>,
    is_cut: Arc<AtomicBool>,
}

/// The listener did not keep up.
#[derive(Debug, thiserror::Error)]
#[error("the listener is {QUEUE} events behind and is cut off; it has to list everything and listen anew")]
pub struct BehindError;

impl Classify for BehindError {
    fn kind(&self) -> Kind {
        Kind::ResourceExhausted
    }
}

impl Events {
    /// All events from now on; an error is the last item.
    pub fn listen(&self) -> impl Stream<Item = Result<Arc<Event>, BehindError>> + Send + 'static {
        let (queue, queued) = mpsc::channel(QUEUE);
        let is_cut = Arc::new(AtomicBool::new(false));
        {
            let mut inner = lock(&self.inner);
            inner.listeners.retain(|listener| !listener.queue.is_closed());
            inner.listeners.push(Listener { queue, is_cut: Arc::clone(&is_cut) });
        }
        stream::unfold((queued, is_cut), async |(mut queued, is_cut)| match queued.recv().await {
            Some(event) => Some((Ok(event), (queued, is_cut))),
            None if is_cut.swap(false, Ordering::Relaxed) => Some((Err(BehindError), (queued, is_cut))),
            None => None,
        })
    }

    /// Tells an event, which is made only if anybody listens; it gets its time.
    fn tell(&self, make: impl FnOnce() -> Event) {
        let mut inner = lock(&self.inner);
        inner.listeners.retain(|listener| !listener.queue.is_closed());
        if inner.listeners.is_empty() {
            return;
        }
        // Before the statuses are looked at, and with the lock held: what is told later was looked at later.
        let created_at = now().max(inner.last.saturating_add(1));
        inner.last = created_at;
        let event = Arc::new(Event { created_at, ..make() });
        inner.listeners.retain(|listener| {
            let queued = listener.queue.try_send(Arc::clone(&event)).is_ok();
            if !queued {
                listener.is_cut.store(true, Ordering::Relaxed);
            }
            queued
        });
    }
}

/// Something has happened to a container.
pub(crate) fn container(app: &App, container: &Container, kind: ContainerEventType) {
    tell(app, &container.sandbox, container.id.as_str(), kind);
}

/// Something has happened to a pod; clients know its sandbox as a container of the same id.
pub(crate) fn sandbox(app: &App, sandbox: &Arc<Sandbox>, kind: ContainerEventType) {
    tell(app, sandbox, sandbox.id.as_str(), kind);
}

fn tell(app: &App, sandbox: &Arc<Sandbox>, id: &str, kind: ContainerEventType) {
    app.events.tell(|| Event {
        container_id: id.to_owned(),
        container_event_type: kind.into(),
        created_at: 0,
        pod_sandbox_status: Some(sandbox::message(sandbox)),
        containers_statuses: container::messages(app, &sandbox.id),
    });
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    fn event(id: usize) -> Event {
        Event { container_id: id.to_string(), ..Event::default() }
    }

    #[tokio::test]
    async fn times_rise_and_all_listeners_hear_all() {
        let events = Events::default();
        events.tell(|| panic!("nobody listens"));
        let listeners = [events.listen(), events.listen()];
        for id in 0..50 {
            events.tell(|| event(id));
        }
        for listener in listeners {
            let heard: Vec<_> = listener.take(50).map(|event| event.unwrap()).collect().await;
            assert!(heard.iter().map(|event| event.container_id.as_str()).eq((0..50).map(|id| id.to_string())));
            assert!(heard.is_sorted_by(|one, next| one.created_at < next.created_at));
        }
        assert_eq!(lock(&events.inner).listeners.len(), 2);
        events.tell(|| panic!("they are gone"));
    }

    #[tokio::test]
    async fn who_is_late_is_cut_off_and_nobody_else() {
        let events = Events::default();
        let late = events.listen();
        let mut prompt = Box::pin(events.listen());
        for id in 0..QUEUE + 10 {
            events.tell(|| event(id));
            assert_eq!(prompt.next().await.unwrap().unwrap().container_id, id.to_string());
        }
        let heard: Vec<_> = late.collect().await;
        assert_eq!(heard.len(), QUEUE + 1);
        assert!(heard[..QUEUE].iter().all(Result::is_ok) && heard[QUEUE].is_err());
    }
}
