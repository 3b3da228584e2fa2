//! Forgetting of tracked UDP flows.
//!
//! NAT is decided by the first packet of a flow, and a UDP flow lives as long as its packets come: a client that spoke to
//! a host port before it was published would never reach the pod, and one that speaks on after the pod is gone would reach
//! whoever has its address next. So flows to a port are forgotten when it is published and when it is taken back.

use std::{io, net::IpAddr};

use netlink_packet_netfilter::{
    NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol as Tracked, Tuple},
};
use nix::errno::Errno;

use super::{
    Protocol, link,
    netlink::{FilterChannel, Mode},
    nft::{HostPort, header},
};

/// Forgets the flows to these ports. A kernel without connection tracking over netlink has none that we could.
pub(super) fn forget(channel: &mut FilterChannel, ports: &[HostPort]) -> io::Result<()> {
    let ports: Vec<_> = ports.iter().filter(|port| port.protocol == Protocol::Udp).collect();
    if ports.is_empty() {
        return Ok(());
    }
    let family = NetfilterProtoFamily::IPv4;
    let all = match channel.list(NetfilterMessage::new(header(family), ConntrackMessage::Get(Vec::new()))) {
        Ok(all) => all.messages,
        Err(error) if is_unsupported(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for message in all {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else { continue };
        let Some(original) = attributes.into_iter().find_map(|attribute| match attribute {
            ConntrackAttribute::CtaTupleOrig(original) => Some(original),
            _ => None,
        }) else {
            continue;
        };
        if !ports.iter().any(|port| leads_to(&original, port)) {
            continue;
        }
        let delete = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(original)]);
        match channel.request(NetfilterMessage::new(header(family), delete), Mode::Plain) {
            Err(error) if !link::is_missing(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a flow began as one to the port.
fn leads_to(original: &[Tuple], port: &HostPort) -> bool {
    let (mut protocol, mut to_port, mut to) = (None, None, None);
    for part in original {
        match part {
            Tuple::Ip(parts) => {
                to = parts.iter().find_map(|part| match part {
                    IPTuple::DestinationAddress(address) => Some(*address),
                    _ => None,
                });
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(number) => protocol = Some(*number),
                        ProtoTuple::DestinationPort(number) => to_port = Some(*number),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    protocol == Some(Tracked::Udp)
        && to_port == Some(port.port)
        && port.address.is_none_or(|address| to == Some(IpAddr::V4(address)))
}

fn is_unsupported(error: &io::Error) -> bool {
    [Errno::EINVAL, Errno::EOPNOTSUPP, Errno::ENOENT].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}
