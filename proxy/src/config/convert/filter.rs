//! Filters of listeners and routes.

use super::super::slot::Slot;
use super::super::written;
use super::super::{Contract, Filter, HeaderFilter, OnFailure, PluginFilter};
use super::{Plugins, Reading};

/// The largest request body sent to a filter that needs bodies, unless the filter says otherwise.
const MAX_BODY: usize = 1024 * 1024;

impl Reading<'_> {
    pub(super) fn filters(&mut self, written: &written::List<written::Filter>, plugins: &Plugins) -> Vec<Filter> {
        self.list(written, |reading, filter, node| match filter {
            written::Filter::Text(name) => {
                reading.plugin_filter(name, node, &written::FilterDetails::default(), plugins).map(Filter::Plugin)
            }
            written::Filter::Mapping(details) => reading.filter_details(details, node, plugins),
        })
    }

    fn filter_details(&mut self, written: &written::FilterDetails, node: u64, plugins: &Plugins) -> Option<Filter> {
        match (&written.plugin, &written.header) {
            (Slot::Missing, Slot::Missing) => {
                if !self.has_key_like("plugin", node) && !self.has_key_like("header", node) {
                    self.push(self.problem(node, "a filter needs `plugin` or `header`"));
                }
                None
            }
            (Slot::Missing, header) => {
                let (header, header_node) = header.given()?;
                for (field, given) in [
                    ("timeout", !written.timeout.is_missing()),
                    ("on_failure", !written.on_failure.is_missing()),
                    ("max_body", !written.max_body.is_missing()),
                ] {
                    if given {
                        let message = format!("`{field}` is for filters that ask a plugin; `header` asks none");
                        self.push(self.problem(node, message));
                    }
                }
                self.header_filter(header, header_node).map(Filter::Header)
            }
            (plugin, Slot::Missing) => {
                let (name, name_node) = plugin.given()?;
                self.plugin_filter(name, name_node, written, plugins).map(Filter::Plugin)
            }
            _ => {
                self.push(self.problem(node, "a filter is either `plugin` or `header`, not both"));
                None
            }
        }
    }

    fn plugin_filter(
        &mut self,
        name: &str,
        node: u64,
        written: &written::FilterDetails,
        plugins: &Plugins,
    ) -> Option<PluginFilter> {
        let Some(plugin) = plugins.get(name) else {
            self.unknown("plugin", name, node, plugins.keys().map(String::as_str));
            return None;
        };
        Some(PluginFilter {
            plugin: name.to_owned(),
            timeout: self.timeout(&written.timeout, plugin.timeout),
            on_failure: written.on_failure.value().map_or(plugin.on_failure, |&choice| choice.into()),
            max_body: self.size(&written.max_body, MAX_BODY, 1..=64 << 20),
        })
    }

    fn header_filter(&mut self, written: &written::HeaderFilter, node: u64) -> Option<HeaderFilter> {
        self.require(&written.name, "name", node);
        let name = written.name.given().and_then(|(name, node)| self.header_name(name, node));
        let values = match (&written.value, &written.values) {
            (Slot::Missing, Slot::Missing) => {
                self.push(self.problem(node, "a header filter needs `value` or `values`"));
                Vec::new()
            }
            (Slot::Missing, values) => {
                if let Some(([], node)) = values.given().map(|(values, node)| (values.as_slice(), node)) {
                    self.push(self.problem(node, "`values` is empty, so nothing would pass"));
                }
                self.list(values, |reading, value, node| reading.header_value(&value.0, node))
            }
            (value, Slot::Missing) => {
                value.given().and_then(|(value, node)| self.header_value(&value.0, node)).into_iter().collect()
            }
            _ => {
                self.push(self.problem(node, "a header filter takes `value` or `values`, not both"));
                Vec::new()
            }
        };
        let status = u16::try_from(self.count(&written.status, 403, 400..=599)).unwrap_or(403);
        let status = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::FORBIDDEN);
        Some(HeaderFilter { name: name?, values, status })
    }

    /// A plugin that supplies certificates.
    pub(super) fn certificate_plugin(&mut self, name: &str, node: u64, plugins: &Plugins) -> Option<String> {
        match plugins.get(name) {
            None => self.unknown("plugin", name, node, plugins.keys().map(String::as_str)),
            Some(plugin) if plugin.contract == Contract::Mosn => {
                let problem = self.problem(node, format!("plugin `{name}` can't supply certificates"));
                self.push(problem.label("its contract is `mosn`, which has filters only"));
            }
            Some(_) => return Some(name.to_owned()),
        }
        None
    }
}

impl From<written::OnFailure> for OnFailure {
    fn from(written: written::OnFailure) -> Self {
        match written {
            written::OnFailure::Deny => Self::Deny,
            written::OnFailure::Allow => Self::Allow,
        }
    }
}
