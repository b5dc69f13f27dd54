//! What is counted with every request: each worker counts for itself, and it is added up when somebody looks.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::known::Known;
use crate::workers::PerWorker;

/// A sum for each set of labels. Cheap to clone; all clones are the same.
#[derive(Debug)]
pub(super) struct Shards<L, V>(Arc<PerWorker<Mutex<Known<L, V>>>>);

impl<L, V> Clone for Shards<L, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What is added up.
pub(super) trait Sum: Default + Debug + Send + 'static {
    const KIND: MetricType;

    fn add(&mut self, other: &Self);

    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result;
}

impl<L: Clone + Ord + Hash, V: Sum> Shards<L, V> {
    pub(super) fn new(workers: usize) -> Self {
        Self(Arc::new(PerWorker::new(workers, Mutex::default)))
    }

    /// Adds to the sum of these labels.
    pub(super) fn count(&self, labels: L, add: impl FnOnce(&mut V)) {
        add(lock(self.0.here()).entry(labels).or_default());
    }

    fn sums(&self) -> BTreeMap<L, V> {
        let mut sums = BTreeMap::<L, V>::new();
        for shard in self.0.iter() {
            for (labels, sum) in &*lock(shard) {
                sums.entry(labels.clone()).or_default().add(sum);
            }
        }
        sums
    }
}

fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    // Sums are whole whatever happens.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As the registry wants it.
#[derive(Debug)]
pub(super) struct Named<L, V> {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) unit: Option<Unit>,
    pub(super) sums: Shards<L, V>,
}

impl<L: EncodeLabelSet + Clone + Debug + Ord + Hash + Send + Sync + 'static, V: Sum> Collector for Named<L, V> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sums = self.sums.sums();
        if sums.is_empty() {
            return Ok(());
        }
        let mut metric = encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), V::KIND)?;
        sums.iter().try_for_each(|(labels, sum)| sum.encode(metric.encode_family(labels)?))
    }
}

impl Sum for u64 {
    const KIND: MetricType = MetricType::Counter;

    fn add(&mut self, other: &Self) {
        *self += other;
    }

    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(self, None)
    }
}

/// The upper bounds of a histogram's buckets, in seconds.
pub(super) trait Buckets: Debug + Send + 'static {
    const BOUNDS: &'static [f64];
}

/// A histogram of times.
#[derive(Debug)]
pub(super) struct Times<B> {
    seconds: f64,
    count: u64,
    /// One for each bound.
    within: Vec<u64>,
    _bounds: std::marker::PhantomData<B>,
}

impl<B: Buckets> Default for Times<B> {
    fn default() -> Self {
        Self { seconds: 0.0, count: 0, within: vec![0; B::BOUNDS.len()], _bounds: std::marker::PhantomData }
    }
}

impl<B: Buckets> Times<B> {
    pub(super) fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.seconds += seconds;
        self.count += 1;
        let bucket = B::BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(within) = self.within.get_mut(bucket) {
            *within += 1;
        }
    }
}

impl<B: Buckets> Sum for Times<B> {
    const KIND: MetricType = MetricType::Histogram;

    fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.count += other.count;
        self.within.iter_mut().zip(&other.within).for_each(|(sum, part)| *sum += part);
    }

    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let beyond = self.count - self.within.iter().sum::<u64>();
        let bounds = B::BOUNDS.iter().copied().chain([f64::MAX]);
        let buckets: Vec<_> = bounds.zip(self.within.iter().copied().chain([beyond])).collect();
        encoder.encode_histogram::<NoLabelSet>(self.seconds, self.count, &buckets, None)
    }
}
