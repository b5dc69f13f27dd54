//! From the configuration of a plugin to what the supervisor runs, and from a fresh connection to a client.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use palisade_plugin_proto::env;
use palisade_supervisor::{
    Adapter, AttachError, HealthPolicy, InstanceInfo, PluginSpec, RestartPolicy, Sandbox, Stagger, TcpPolicy,
    Transition,
};
use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::Value as Json;
use tokio::runtime::Handle;
use tonic::transport::Channel;

use super::mosn::Mosn;
use super::native::{Generation, Native};
use super::record::Record;
use super::{Client, Events, Speaks};
use crate::config::{self, Contract};

/// What a configuration uses a plugin for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Roles {
    pub(crate) filter: bool,
    pub(crate) certificates: bool,
}

impl Roles {
    /// Whether what was checked for these uses is checked for `others`.
    pub(super) fn cover(self, others: Self) -> bool {
        (self.filter || !others.filter) && (self.certificates || !others.certificates)
    }
}

/// Attaches instances of one plugin by the contract that its configuration names.
#[derive(Debug)]
pub(crate) struct Contracts {
    contract: Contract,
    roles: Roles,
    workers: Arc<[Handle]>,
    config: Struct,
    config_hash: String,
    /// Which instance, from 1, where there are several.
    instance: Option<usize>,
    events: Events,
    /// Whether any instance may have been configured.
    reached: Arc<AtomicBool>,
}

impl Contracts {
    pub(super) fn new(
        plugin: &config::Plugin,
        (roles, workers): (Roles, &Arc<[Handle]>),
        instance: Option<usize>,
        events: Events,
        reached: Arc<AtomicBool>,
    ) -> Self {
        Self {
            contract: plugin.contract,
            roles,
            workers: Arc::clone(workers),
            config: message(config::to_json(&plugin.config)),
            config_hash: config::hash(&plugin.config),
            instance,
            events,
            reached,
        }
    }
}

impl Contracts {
    fn generation(&self, instance: &InstanceInfo) -> Generation {
        Generation { hash: self.config_hash.as_str().into(), may_be_silent: instance.pid.is_some() }
    }
}

impl Adapter for Contracts {
    type Client = Client;

    async fn attach(&self, channel: Channel, instance: InstanceInfo) -> Result<Client, AttachError> {
        self.reached.store(true, Ordering::Release);
        let generation = self.generation(&instance);
        let (connector, workers) = (&instance.connector, &*self.workers);
        let speaks = match self.contract {
            Contract::Palisade => {
                let config = self.config.clone();
                let attached = Native::attach((channel, connector, workers), self.roles, config, generation);
                attached.await.map(Speaks::Native).map_err(AttachError::new)?
            }
            Contract::Mosn => Speaks::Mosn(Mosn::attach(channel, connector, workers).await),
        };
        Ok(Client { speaks, pid: instance.pid, record: Record::default(), calls: instance.calls })
    }

    fn observe(&self, transition: &Transition) {
        self.events.record(self.instance, transition);
    }
}

/// What the supervisor is to run.
pub(super) fn spec(name: &str, plugin: &config::Plugin, runtime_dir: &Path) -> PluginSpec {
    let mut spec = PluginSpec::new(name, &plugin.command, runtime_dir);
    spec.found.clone_from(&plugin.found);
    spec.cwd.clone_from(&plugin.cwd);
    spec.env = plugin.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
    spec.env_pass = plugin.env_pass.iter().map(OsString::from).collect();
    spec.socket_group = plugin.socket_group;
    spec.checksums = plugin.checksums.clone();
    spec.sandbox = if plugin.found.is_some() { Sandbox::default() } else { plugin.sandbox.policy.clone() };
    // This very program, even where its file has been replaced since.
    spec.helper = Some(("/proc/self/exe".into(), vec![crate::cli::SANDBOX_EXEC.into()]));
    if plugin.contract == Contract::Mosn {
        spec.cookie = (env::MOSN_COOKIE.0.to_owned(), env::MOSN_COOKIE.1.to_owned());
        // MOSN tells its plugins how many threads to use; those made with its SDK read it.
        spec.env.entry("MOSN_PROCS".into()).or_insert_with(|| "1".into());
    }
    spec.handshake.timeout = plugin.handshake_timeout;
    spec.ready_timeout = plugin.ready_timeout;
    spec.auto_mtls = plugin.auto_mtls;
    spec.tcp = if plugin.allow_remote_tcp { TcpPolicy::Any } else { TcpPolicy::LoopbackOnly };
    spec.health = HealthPolicy {
        interval: plugin.health.interval,
        timeout: plugin.health.timeout,
        failures: plugin.health.failures,
        call_misses: plugin.health.call_misses,
        stopped_timeout: plugin.health.stopped_timeout,
        // go-plugin's name for the whole plugin; servers without the handshake know only the standard one.
        service: if spec.is_probed() || spec.found.is_some() { String::new() } else { HealthPolicy::default().service },
    };
    spec.restart = RestartPolicy {
        mode: plugin.restart.policy,
        initial: plugin.restart.initial,
        max: plugin.restart.max,
        multiplier: f64::from(plugin.restart.multiplier),
        jitter: f64::from(plugin.restart.jitter) / 100.0,
        reset_after: plugin.restart.reset_after,
        crash_loop_after: plugin.restart.crash_loop_after,
        max_restarts: plugin.restart.max_restarts,
        window: plugin.restart.window,
        stagger: Stagger::new(plugin.restart.stagger),
    };
    spec.exit_reports = plugin.exit_reports;
    spec.stop.drain_timeout = plugin.drain_timeout;
    spec.stop.term_timeout = plugin.stop_timeout;
    spec
}

/// A plugin's configuration as `google.protobuf.Struct`.
fn message(config: Json) -> Struct {
    match config {
        Json::Object(fields) => {
            Struct { fields: fields.into_iter().map(|(name, field)| (name, value(field))).collect() }
        }
        // The configuration's reader lets nothing but mappings through.
        _ => Struct::default(),
    }
}

fn value(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        // Integers beyond 2^53 and infinity were refused when the file was read.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(items) => Kind::ListValue(ListValue { values: items.into_iter().map(value).collect() }),
        object @ Json::Object(_) => Kind::StructValue(message(object)),
    };
    Value { kind: Some(kind) }
}
