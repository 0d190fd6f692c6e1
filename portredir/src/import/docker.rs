//! Reads `docker inspect`, and that of podman: published ports lead to the address of their
//! container.

use std::net::IpAddr;

use portredir_common::net::{Port, Protocol, Version};
use serde_json::Value;

use super::found::{Found, Note};
use super::redirect::{Clients, Goal, Redirect};
use crate::rule::{Label, Name, Ports};

/// Reads objects of containers; `None` if they are something else.
pub(super) fn read(objects: &[&Value]) -> Option<Found> {
    let mut found = Found::default();
    for object in objects {
        let name = name(object);
        if let Some(settings) = object.get("NetworkSettings") {
            container(settings, &name, &mut found);
        } else if object.get("Ports").is_some() && object.get("ID").or(object.get("Id")).is_some() {
            if object["Ports"].to_string().contains("->") || object["Ports"].is_array() {
                let why =
                    "the list of containers has no addresses: import what docker inspect prints";
                found.refuse(name, why);
            }
        } else {
            return None;
        }
    }
    (!objects.is_empty()).then_some(found)
}

fn name(object: &Value) -> String {
    let name = object
        .get("Name")
        .or(object.get("Names"))
        .unwrap_or(&Value::Null);
    let name = name.get(0).unwrap_or(name).as_str().unwrap_or("container");
    name.trim_start_matches('/').to_owned()
}

/// Adds the published ports of a container.
fn container(settings: &Value, name: &str, found: &mut Found) {
    let Some(ports) = settings["Ports"].as_object() else {
        return;
    };
    let addrs = addrs(settings);
    for (exposed, published) in ports {
        for place in published.as_array().into_iter().flatten() {
            let host = place["HostIp"].as_str().unwrap_or_default();
            let port = place["HostPort"].as_str().unwrap_or_default();
            let line = format!("{name}: {host}:{port}->{exposed}");
            match redirect(&line, (exposed, place), &addrs) {
                Ok(redirect) => {
                    let name = Name::try_from(name.to_owned()).ok();
                    let label = Label {
                        name,
                        comment: None,
                    };
                    found.notes.insert(Note::Containers);
                    found.redirects.push(Redirect { label, ..redirect });
                }
                Err(why) => found.refuse(line, why),
            }
        }
    }
}

/// The addresses of a container in its networks.
fn addrs(settings: &Value) -> Vec<IpAddr> {
    let networks = settings["Networks"].as_object();
    let networks = networks.into_iter().flat_map(|networks| networks.values());
    let all = networks.chain([settings]);
    let texts = all.flat_map(|network| [&network["IPAddress"], &network["GlobalIPv6Address"]]);
    texts
        .filter_map(|addr| addr.as_str()?.parse().ok())
        .collect()
}

fn redirect(
    line: &str,
    (exposed, place): (&str, &Value),
    addrs: &[IpAddr],
) -> Result<Redirect, String> {
    let (port, protocol) = exposed.split_once('/').unwrap_or((exposed, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err(format!("rules are for TCP and UDP, not for {protocol}")),
    };
    let number = |text: &str| {
        let number = text.parse::<u16>().ok().filter(|port| *port > 0);
        number
            .map(|port| Ports::one(Port::new(port)))
            .ok_or_else(|| format!("`{text}` is not a port"))
    };
    let host = place["HostIp"].as_str().unwrap_or_default();
    let host: Option<IpAddr> = host.parse().ok();
    let is_v6 = host.is_some_and(|host| host.is_ipv6());
    let addr = addrs.iter().find(|addr| addr.is_ipv6() == is_v6);
    let addr = addr.ok_or(match is_v6 {
        true => "docker passes IPv6 clients on by its proxy: the container has no IPv6 address",
        false => "the container has no IPv4 address; does it run?",
    })?;
    let goal = Goal {
        host: Some(*addr),
        ports: Some(number(port)?),
    };
    Ok(Redirect {
        clients: Clients::All,
        version: Some(if is_v6 { Version::V6 } else { Version::V4 }),
        protocols: vec![protocol],
        ports: vec![number(place["HostPort"].as_str().unwrap_or_default())?],
        addrs: host
            .filter(|host| !host.is_unspecified())
            .into_iter()
            .collect(),
        ..Redirect::new(line, goal)
    })
}
