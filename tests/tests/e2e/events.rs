//! The stream of events: order, times, what they carry, several listeners, and one that does not listen.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tonic::{Code, Streaming};
use vaina_proto::cri::{
    ContainerEventResponse as Event, ContainerEventType, ContainerState, GetEventsRequest, PodSandboxState,
};
use vaina_tests::{
    build::Container,
    node::{IMAGE, Node, e2e_cri},
};

async fn listen(node: &Node) -> Result<Streaming<Event>> {
    Ok(node.cri().get_container_events(GetEventsRequest {}).await?)
}

async fn next(events: &mut Streaming<Event>) -> Result<Event> {
    let event = tokio::time::timeout(Duration::from_secs(30), events.message()).await.context("no event")??;
    event.context("the stream ended")
}

fn shape(event: &Event) -> (String, ContainerEventType) {
    (event.container_id.clone(), event.container_event_type())
}

use ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
    ContainerStoppedEvent as Stopped,
};

// proves: GetContainerEvents
// proves: ContainerEventResponse.{container_id, container_event_type, created_at, pod_sandbox_status}
// proves: ContainerEventResponse.containers_statuses, ContainerEventType.*
#[test]
fn a_pods_life_is_told_in_order_to_everybody() {
    e2e_cri(async |node| {
        let mut listeners = [listen(node).await?, listen(node).await?];
        let pod = node.pod("life").label("app", "web");
        let sandbox = node.run_pod(&pod).await?;
        let first = node.start(&sandbox, &pod, &Container::new("first", IMAGE).sh("sleep 1000")).await?;
        let second = node.start(&sandbox, &pod, &Container::new("second", IMAGE).sh("exit 3")).await?;
        node.wait_exited(&second).await?;
        node.cri().stop_container(&first, 0).await?;
        node.cri().remove_container(&second).await?;
        node.remove_pod(&sandbox).await?;

        let id = |id: &str| id.to_owned();
        let wanted = [
            (id(&sandbox), Created),
            (id(&sandbox), Started),
            (id(&first), Created),
            (id(&first), Started),
            (id(&second), Created),
            (id(&second), Started),
            (id(&second), Stopped),
            (id(&first), Stopped),
            (id(&second), Deleted),
            (id(&sandbox), Stopped),
            (id(&first), Deleted),
            (id(&sandbox), Deleted),
        ];
        for events in &mut listeners {
            let mut heard = Vec::new();
            for _ in &wanted {
                heard.push(next(events).await?);
            }
            assert_eq!(heard.iter().map(shape).collect::<Vec<_>>(), wanted);
            assert!(heard.is_sorted_by(|one, next| one.created_at < next.created_at), "times rise strictly");
            for event in &heard {
                let status = event.pod_sandbox_status.as_ref().context("the pod's status")?;
                assert_eq!((&status.id, &status.metadata), (&sandbox, &pod.config.metadata));
                assert_eq!(status.labels, pod.config.labels);
            }
            // Statuses are at least as new as the event, and of all containers.
            let status = |event: usize, container: &str| {
                let status = heard[event].containers_statuses.iter().find(|status| status.id == container);
                status.with_context(|| format!("event {event} has the status of {container}"))
            };
            assert_eq!(heard[0].pod_sandbox_status.as_ref().context("status")?.state(), PodSandboxState::SandboxReady);
            assert!(!heard[1].pod_sandbox_status.clone().context("status")?.network.context("network")?.ip.is_empty());
            assert_eq!(status(3, &first)?.state(), ContainerState::ContainerRunning);
            assert_eq!(status(4, &first)?.state(), ContainerState::ContainerRunning, "the pod's others as well");
            let stopped = status(6, &second)?;
            assert_eq!((stopped.state(), stopped.exit_code), (ContainerState::ContainerExited, 3));
            assert!(stopped.finished_at <= heard[6].created_at, "{stopped:?} {}", heard[6].created_at);
            assert_eq!(status(7, &first)?.exit_code, 137);
            assert!(status(8, &second).is_err(), "it is deleted");
            let last = &heard[11];
            assert!(last.containers_statuses.is_empty());
            assert_eq!(last.pod_sandbox_status.as_ref().context("status")?.state(), PodSandboxState::SandboxNotready);
        }
        Ok(())
    });
}

#[test]
fn a_failed_start_is_told_as_an_end() {
    e2e_cri(async |node| {
        let pod = node.pod("failed");
        let sandbox = node.run_pod(&pod).await?;
        let mut events = listen(node).await?;
        let id = node.create(&sandbox, &pod, &Container::new("c", IMAGE).command(&["/none"])).await?;
        ensure!(node.cri().start_container(&id).await.is_err());
        assert_eq!(shape(&next(&mut events).await?), (id.clone(), Created));
        let stopped = next(&mut events).await?;
        assert_eq!(shape(&stopped), (id.clone(), Stopped));
        assert_eq!((stopped.containers_statuses.len(), stopped.containers_statuses[0].exit_code), (1, 128));
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

/// A status asked for after an event is never older than the event.
#[test]
fn what_is_told_has_happened() {
    e2e_cri(async |node| {
        let pod = node.pod("happened");
        let sandbox = node.run_pod(&pod).await?;
        let mut events = listen(node).await?;
        for number in 0..10 {
            let config = Container::new(&format!("c{number}"), IMAGE).sh("exit 0");
            let id = node.start(&sandbox, &pod, &config).await?;
            loop {
                let event = next(&mut events).await?;
                let state = node.cri().container(&id).await?.state();
                match event.container_event_type() {
                    Created => {}
                    Started => ensure!(state != ContainerState::ContainerCreated, "{state:?}"),
                    Stopped => {
                        ensure!(state == ContainerState::ContainerExited, "{state:?}");
                        break;
                    }
                    Deleted => ensure!(false, "nobody removes it"),
                }
            }
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn who_does_not_listen_is_cut_off_and_keeps_nobody_waiting() {
    e2e_cri(async |node| {
        let mut pod = node.pod("slow");
        // One event fills what the connection holds for a client that does not read.
        pod = pod.annotation("large", &"x".repeat(100_000));
        let sandbox = node.run_pod(&pod).await?;
        let mut slow = listen(node).await?;
        let mut prompt = listen(node).await?;
        let rounds = 160;
        for number in 0..rounds {
            let id = node.create(&sandbox, &pod, &Container::new(&format!("c{number}"), IMAGE).sh("true")).await?;
            assert_eq!(shape(&next(&mut prompt).await?), (id.clone(), Created));
            node.cri().remove_container(&id).await?;
            assert_eq!(shape(&next(&mut prompt).await?), (id, Deleted));
        }
        let mut heard = 0;
        let cut = loop {
            match tokio::time::timeout(Duration::from_secs(30), slow.message()).await.context("no end")? {
                Ok(Some(_)) => heard += 1,
                Ok(None) => anyhow::bail!("the stream ended without an error after {heard} events"),
                Err(status) => break status,
            }
        };
        assert_eq!(cut.code(), Code::ResourceExhausted, "{cut:?}");
        ensure!(heard < 2 * rounds, "{heard} events in a queue with an end");
        // It listens anew and is there again.
        let mut again = listen(node).await?;
        node.remove_pod(&sandbox).await?;
        assert_eq!(shape(&next(&mut again).await?), (sandbox.clone(), Stopped));
        assert_eq!(shape(&next(&mut again).await?), (sandbox, Deleted));
        Ok(())
    });
}
