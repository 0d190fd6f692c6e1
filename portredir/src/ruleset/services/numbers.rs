//! The numbers of services and targets that are unused.

use portredir_common::map::targets::{SERVICES, TARGETS};

use super::service::Service;

/// The numbers that are unused; number 0 is none.
pub struct Numbers {
    services: Vec<u16>,
    targets: Vec<u16>,
}

impl Numbers {
    /// The numbers that these services and their targets leave unused.
    pub fn of(services: &[Service]) -> Self {
        let targets = services.iter().flat_map(Service::all_targets);
        Self {
            services: unused(services.iter().map(|service| service.number), SERVICES),
            targets: unused(targets.map(|target| target.number), TARGETS),
        }
    }

    /// The lowest unused number of a service, which is used from now on.
    pub fn service(&mut self) -> Option<u16> {
        self.services.pop()
    }

    /// The lowest unused number of a target, which is used from now on.
    pub fn target(&mut self) -> Option<u16> {
        self.targets.pop()
    }

    /// The number of targets that can be added.
    pub fn left(&self) -> usize {
        self.targets.len()
    }
}

/// The unused numbers below `end`, the lowest one last.
fn unused(used: impl Iterator<Item = u16>, end: u32) -> Vec<u16> {
    let end = u16::try_from(end).unwrap_or(u16::MAX);
    let mut is_used = vec![false; usize::from(end)];
    for number in used {
        if let Some(is_used) = is_used.get_mut(usize::from(number)) {
            *is_used = true;
        }
    }
    let numbers = (1..end).rev();
    numbers
        .filter(|number| !is_used[usize::from(*number)])
        .collect()
}
