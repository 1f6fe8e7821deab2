//! The rules that one value alone can't break, and what haproxy.cfg can't hold.

use super::Config;

impl Config {
    /// Adds each rule that is broken to the mistakes.
    pub(super) fn check(&self, mistakes: &mut Vec<String>) {
        let mut require = |holds: bool, text: &str| {
            if !holds {
                mistakes.push(text.to_owned());
            }
        };
        require(self.http.workers > 0, "http.workers: must be at least 1");
        require(self.http.failures_per_minute > 0, "http.failures_per_minute: must be at least 1");
        require(self.manifest.pool_size > 1, "manifest.pool_size: must be at least 2");
        require(self.reconcile.concurrency > 0, "reconcile.concurrency: must be at least 1");
        require(!self.reconcile.period.is_zero(), "reconcile.period: must not be zero");
        require(self.tenant.memory_mib >= 96, "tenant.memory_mib: a Hoodie needs at least 96");
        require((0.01..=1000.0).contains(&self.tenant.cpus), "tenant.cpus: must be between 0.01 and 1000");
        require(self.tenant.pids >= 16, "tenant.pids: a Hoodie needs at least 16");
        require(self.tenant.log_mib > 0, "tenant.log_mib: must be at least 1");
        require(!self.tenant.disk_period.is_zero(), "tenant.disk_period: must not be zero");
        require(self.lifecycle.wake_concurrency > 0, "lifecycle.wake_concurrency: must be at least 1");
        require(self.lifecycle.roll_concurrency > 0, "lifecycle.roll_concurrency: must be at least 1");
        require(!self.lifecycle.wake_timeout.is_zero(), "lifecycle.wake_timeout: must not be zero");
        let budget = self.lifecycle.memory_budget_mib;
        require(
            budget == 0 || budget >= self.tenant.memory_mib as usize,
            "lifecycle.memory_budget_mib: must be 0, or at least tenant.memory_mib",
        );
        let webhook = &self.lifecycle.webhook_url;
        let by_http = |url: url::Url| matches!(url.scheme(), "http" | "https") && url.host().is_some();
        require(
            webhook.is_empty() || webhook.parse().is_ok_and(by_http),
            "lifecycle.webhook_url: must be an http or https URL",
        );
        require(
            self.haproxy.app_maxconn > 0 && self.haproxy.app_maxconn <= self.haproxy.maxconn,
            "haproxy.app_maxconn: must be between 1 and haproxy.maxconn",
        );
        require(!self.haproxy.hard_stop_after.is_zero(), "haproxy.hard_stop_after: must not be zero");
        require(!self.haproxy.head_timeout.is_zero(), "haproxy.head_timeout: must not be zero");
        require(self.haproxy.app_request_rate > 0, "haproxy.app_request_rate: must be at least 1");
        require(self.haproxy.body_max_mib > 0, "haproxy.body_max_mib: must be at least 1");
        require(self.haproxy.old_workers_max > 0, "haproxy.old_workers_max: must be at least 1");
        require(
            self.haproxy.user.is_empty() == self.haproxy.group.is_empty(),
            "haproxy.user and haproxy.group: give both or neither",
        );
        for (name, word) in [("user", &self.haproxy.user), ("group", &self.haproxy.group)] {
            let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            require(plain, &format!("haproxy.{name}: must be a plain account name"));
        }
        // What Docker takes for a name.
        let container = self.haproxy.reload_container.as_bytes();
        let starts_well = container.first().is_none_or(u8::is_ascii_alphanumeric);
        require(
            starts_well && container.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b)),
            "haproxy.reload_container: must be a container's name",
        );
        for (name, text) in [
            ("http_bind", self.haproxy.http_bind.as_str()),
            ("https_bind", self.haproxy.https_bind.as_str()),
            ("control_servers", self.haproxy.control_servers.as_str()),
        ] {
            let plain = text.bytes().all(|b| b.is_ascii_graphic() && !b"#\"'\\{}".contains(&b) || b == b' ');
            require(plain, &format!("haproxy.{name}: has a character that haproxy.cfg can't hold"));
        }
        for (name, path) in [
            ("haproxy.dir", &self.haproxy.dir),
            ("haproxy.master_socket", &self.haproxy.master_socket),
            ("haproxy.stats_socket", &self.haproxy.stats_socket),
            ("tls.dir", &self.tls.dir),
        ] {
            let plain = path.to_str().is_some_and(|text| {
                text.chars().all(|c| !c.is_control() && !c.is_whitespace() && !"#\"'\\{}".contains(c))
            });
            require(plain, &format!("{name}: has a character that haproxy.cfg can't hold"));
        }
    }
}
