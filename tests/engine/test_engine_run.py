"""The local engine on real processes: order, caching, failures, interruption."""

from engine_bench import of_kind

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


def test_runs_in_order_and_publishes_whole_steps(bench):
    bench.plan(DIAMOND)
    code, events = bench.run()
    assert code == 0
    print(events)
    assert len(bench.store.finished()) == 4
    code, events = bench.run()
    assert code == 0
