//! What each request costs in the rooms that it goes through, by what it grows with.

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use palisade::bench::{Hot, Table, mutate};

fn requests(criterion: &mut Criterion) {
    for headers in [5, 20, 80] {
        let hot = Hot::new(headers);
        criterion.bench_with_input(BenchmarkId::new("request_view", headers), &hot, |bencher, hot| {
            bencher.iter_batched(|| hot.parts(), |parts| hot.read(parts), BatchSize::SmallInput);
        });
        criterion.bench_with_input(BenchmarkId::new("encode", headers), &hot, |bencher, hot| {
            bencher.iter(|| hot.encode());
        });
        criterion.bench_with_input(BenchmarkId::new("mutation", headers), &hot, |bencher, hot| {
            bencher.iter_batched(|| hot.fields(), mutate, BatchSize::SmallInput);
        });
    }
}

fn routes(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    for count in [1, 100, 10_000] {
        let table = Table::new(count);
        criterion.bench_with_input(BenchmarkId::new("route_match", count), &table, |bencher, table| {
            bencher.iter(|| table.find());
        });
    }
}

criterion_group!(benches, requests, routes);
criterion_main!(benches);
