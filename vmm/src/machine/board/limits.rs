//! Rate limits of the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reprise_devices::HostClock;
use reprise_devices::virtio::{Bucket, RateLimiter, RateLimits};

use crate::config::{DiskConfig, RateLimitGroupConfig, RateLimiterConfig, TokenBucket};

/// The limiters that disks share, by their groups' names.
pub(super) struct Groups(BTreeMap<String, Arc<RateLimiter>>);

impl Groups {
    pub(super) fn new(groups: &[RateLimitGroupConfig]) -> Self {
        let limiters = groups
            .iter()
            .map(|group| (group.id.clone(), limiter(&group.rate_limiter_config)));
        Self(limiters.collect())
    }

    /// What limits a disk, if anything does.
    pub(super) fn of(&self, disk: &DiskConfig) -> Option<Arc<RateLimiter>> {
        // That the group is there was checked with the configuration.
        let group = disk.rate_limit_group.as_ref().and_then(|group| self.0.get(group));
        group
            .cloned()
            .or_else(|| disk.rate_limiter_config.as_ref().map(limiter))
    }
}

/// A limiter of its own.
pub(super) fn limiter(config: &RateLimiterConfig) -> Arc<RateLimiter> {
    let bucket = |bucket: &TokenBucket| Bucket {
        size: bucket.size,
        one_time_burst: bucket.one_time_burst.unwrap_or(0),
        refill_time: Duration::from_millis(bucket.refill_time),
    };
    let limits = RateLimits {
        bandwidth: config.bandwidth.as_ref().map(bucket),
        ops: config.ops.as_ref().map(bucket),
    };
    Arc::new(RateLimiter::new(&limits, Arc::new(HostClock::new())))
}
