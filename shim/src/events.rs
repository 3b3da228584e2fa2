//! Events to containerd: in order, retried, and never waited for.
//!
//! Only where the caller named an address (`TTRPC_ADDRESS`); our own daemon asks instead. The queue is bounded: beyond that a
//! containerd that does not answer loses the newest, and says so in the log.

use std::time::Duration;

use containerd_shim_protos::{
    protobuf::{
        MessageField, MessageFull,
        well_known_types::{any::Any, timestamp::Timestamp},
    },
    shim::{event::Envelope, events::ForwardRequest},
    shim_async::{Client, EventsClient},
};
use tokio::sync::mpsc;

const QUEUE: usize = 1024;
const TRIES: u32 = 5;
const LIMIT: Duration = Duration::from_secs(5);

/// Where events go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events(Option<mpsc::Sender<Envelope>>, String);

impl Events {
    /// Starts publishing to the address of the environment, if there is one.
    pub(crate) fn start(namespace: &str) -> Self {
        match std::env::var("TTRPC_ADDRESS") {
            Ok(address) if !address.is_empty() => {
                let (sender, receiver) = mpsc::channel(QUEUE);
                tokio::spawn(publish(address, receiver));
                Self(Some(sender), namespace.to_owned())
            }
            _ => Self::default(),
        }
    }

    /// Queues one event.
    pub(crate) fn send<M: MessageFull>(&self, topic: &str, event: &M) {
        let Some(queue) = &self.0 else { return };
        let Ok(value) = event.write_to_bytes() else { return };
        let type_url = M::descriptor().full_name().to_owned();
        let envelope = Envelope {
            timestamp: MessageField::some(Timestamp::now()),
            namespace: self.1.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(Any { type_url, value, ..Any::default() }),
            ..Envelope::default()
        };
        if queue.try_send(envelope).is_err() {
            crate::log::warning!("publish {topic}: the queue is full; the event is lost");
        }
    }
}

/// Sends one after the other; a connection is made when one is needed and kept.
async fn publish(address: String, mut queue: mpsc::Receiver<Envelope>) {
    let address = if address.contains("://") { address } else { format!("unix://{address}") };
    let mut connection: Option<EventsClient> = None;
    while let Some(envelope) = queue.recv().await {
        let topic = envelope.topic.clone();
        let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
        let mut pause = Duration::from_millis(100);
        for attempt in 1..=TRIES {
            match forward(&address, &mut connection, &request).await {
                Ok(()) => break,
                Err(error) if attempt == TRIES => {
                    crate::log::warning!("publish {topic} to {address}: {error}; the event is lost");
                }
                Err(_) => {
                    connection = None;
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
    }
}

async fn forward(
    address: &str,
    connection: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> Result<(), ttrpc::Error> {
    let client = match connection {
        Some(client) => client,
        None => connection.insert(EventsClient::new(Client::connect(address).await?)),
    };
    client.forward(ttrpc::context::with_duration(LIMIT), request).await.map(drop)
}
