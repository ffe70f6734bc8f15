from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from int4core.ranges import Ranges, captured
from pipeline.device.spans import CudaSpans
from pipeline.errors import PipelineError
from pipeline.telemetry.trace import DeviceClock, Records, Tracer, make_tracer, trace_events, write_trace


def spans(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def test_a_span_takes_the_time_of_its_block() -> None:
    tracer = Tracer("main")
    before = time.perf_counter()
    with tracer.span("load", "loader 0", samples=7):
        time.sleep(0.01)
    after = time.perf_counter()
    _, _, _, (record,) = tracer.to_records()
    name, lane, begin_s, end_s, arguments = record
    assert (name, lane, arguments) == ("load", "loader 0", (("samples", 7),))
    assert before <= begin_s < end_s <= after
    assert end_s - begin_s >= 0.01


def test_a_span_that_raises_is_recorded_and_closed() -> None:
    seen: list[str] = []
    ranges = Ranges(lambda name: seen.append(f"+{name}"), lambda: seen.append("-"), True)
    tracer = Tracer("main", ranges=ranges)
    with pytest.raises(KeyError), tracer.span("infer", "gpu 0"):
        raise KeyError
    assert len(tracer.to_records()[3]) == 1
    assert seen == ["+infer", "-"]


def test_the_last_spans_are_kept_and_the_dropped_counted() -> None:
    tracer = Tracer("main", capacity=3)
    for i in range(10):
        tracer.complete(f"span {i}", "lane", i, i + 1)
    assert tracer.to_records()[2] == 7
    trace = trace_events([tracer.to_records()])
    assert [event["name"] for event in spans(trace)] == ["span 7", "span 8", "span 9"]
    assert trace["otherData"] == {"dropped": 7}
    assert trace["traceEvents"][0]["args"]["name"] == "main (7 earlier spans dropped)"


def test_threads_share_a_tracer_and_none_is_miscounted() -> None:
    tracer = Tracer("main", capacity=100)

    def work() -> None:
        for i in range(2_000):
            tracer.complete("span", "lane", i, i + 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tracer.to_records()[2] == 4 * 2_000 - 100


def _child(queue: Any) -> None:
    tracer = Tracer("child")
    with tracer.span("decode", "loader 0"):
        pass
    queue.put(tracer.to_records())


def test_a_spawned_process_is_on_the_same_clock() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    tracer = Tracer("main")
    with tracer.span("outer", "main"):
        child = context.Process(target=_child, args=(queue,))
        child.start()
        records: Records = queue.get(timeout=60)
        child.join(60)
    trace = trace_events([tracer.to_records(), records])
    outer, inner = spans(trace)
    assert outer["pid"] == os.getpid() != inner["pid"]
    assert outer["ts"] == 0 < inner["ts"]
    assert inner["ts"] + inner["dur"] < outer["dur"]


def test_lanes_are_named_per_process() -> None:
    a, b = Tracer("gpu 0"), Tracer("gpu 1")
    a.complete("batch", "compute 0", 10.0, 10.001)
    a.complete("batch", "copy 0", 10.0005, 10.002, samples=1024)
    b.complete("batch", "compute 0", 10.003, 10.004)
    trace = trace_events([(pid, *tracer.to_records()[1:]) for pid, tracer in ((1, a), (2, b))])
    named = {
        (event["pid"], event.get("tid")): event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"
    }
    assert named == {
        (1, None): "gpu 0",
        (1, 1): "compute 0",
        (1, 2): "copy 0",
        (2, None): "gpu 1",
        (2, 1): "compute 0",
    }
    copy = spans(trace)[1]
    assert (copy["ts"], copy["dur"], copy["tid"]) == (500.0, 1500.0, 2)
    assert copy["args"] == {"samples": 1024}


class FakeEvent:
    """An event that the device passes at a time of its own clock, in milliseconds."""

    def __init__(self, ms: float = 0.0) -> None:
        self.ms = ms

    def record(self, stream: FakeStream) -> None:
        self.ms = stream.now_ms

    def synchronize(self) -> None:
        pass


class FakeStream:
    now_ms = 5_000.0

    def __init__(self, **_options: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class FakeCuda:
    Event = FakeEvent
    Stream = FakeStream

    @staticmethod
    def get_elapsed_time(begin: FakeEvent, end: FakeEvent) -> float:
        return end.ms - begin.ms


class FakeCupy:
    cuda = FakeCuda


def test_device_times_come_onto_the_hosts_clock() -> None:
    before = time.perf_counter()
    clock = DeviceClock.start(FakeCupy, FakeStream())
    assert before <= clock.reference_s <= time.perf_counter()
    tracer = Tracer("gpu 0")
    clock.complete(tracer, "conv1", "compute 0", FakeEvent(5_002), FakeEvent(5_003.5), batch=3)
    ((name, lane, begin_s, end_s, arguments),) = tracer.to_records()[3]
    assert (name, lane, arguments) == ("conv1", "compute 0", (("batch", 3),))
    assert begin_s - clock.reference_s == pytest.approx(0.002)
    assert end_s - clock.reference_s == pytest.approx(0.0035)


def test_a_lanes_marks_become_its_upload_and_its_network() -> None:
    tracer = Tracer("gpu")
    began = time.perf_counter()
    spans = CudaSpans(tracer, FakeCupy)
    set_up = time.perf_counter()
    for ticket, ms in enumerate((5_000.0, 20_000.0, 30_000.0)):
        stream = FakeStream()
        marks = []
        for after in (1.0, 3.0, 4.0, 12.0):
            stream.now_ms = ms + after
            marks.append(spans.mark(stream))
        spans.complete(1, ticket, 1024, tuple(marks), ())
    seen = tracer.to_records()[3]
    assert [span[:2] for span in seen] == 3 * [("upload", "copy 1"), ("network", "compute 1")]
    assert [span[4] for span in seen[:2]] == 2 * [(("ticket", 0), ("samples", 1024))]
    assert [span[3] - span[2] for span in seen] == pytest.approx(3 * [0.002, 0.008])
    # On the host's clock, whichever event reports it.
    assert [span[2] - seen[0][2] for span in seen[::2]] == pytest.approx([0.0, 15.0, 25.0])
    assert began + 0.001 <= seen[0][2] <= set_up + 0.001


def test_what_a_device_does_for_an_upload_has_a_lane_of_its_own() -> None:
    tracer, stream = Tracer("gpu"), FakeStream()
    spans = CudaSpans(tracer, FakeCupy)
    marks = []
    for ms in (5_000.0, 5_001.0, 5_003.0, 5_004.0):
        stream.now_ms = ms
        marks.append(spans.mark(stream))
    spans.complete(2, 7, 64, tuple(marks), [("files", *marks[:2]), ("jpeg_unstuff", *marks[1:3])])
    seen = tracer.to_records()[3][2:]
    assert [span[:2] for span in seen] == [("files", "decode 2"), ("jpeg_unstuff", "decode 2")]
    assert [span[3] - span[2] for span in seen] == pytest.approx([0.001, 0.002])
    assert {span[4] for span in seen} == {(("ticket", 7), ("samples", 64))}


def test_a_moved_clock_tells_the_same_time() -> None:
    clock = DeviceClock(FakeEvent(100), 7.0, FakeCupy)
    moved = clock.moved_to(FakeEvent(60_100))
    assert moved.reference_s == pytest.approx(67.0)
    assert moved.seconds(FakeEvent(60_200)) == pytest.approx(clock.seconds(FakeEvent(60_200)))


def test_the_file_is_json_and_a_bad_place_is_an_error(tmp_path: Path) -> None:
    tracer = Tracer("main")
    with tracer.span("load", "main"):
        pass
    file = tmp_path / "deep" / "trace.json"
    write_trace(file, [tracer.to_records()])
    assert json.loads(file.read_text()) == trace_events([tracer.to_records()])
    with pytest.raises(PipelineError, match=r"trace cannot be written: .*--trace"):
        write_trace(file / "below a file", [tracer.to_records()])


def test_who_wants_no_trace_has_none() -> None:
    said: list[str] = []
    ranges = Ranges(said.append, lambda: said.append("end"), True)
    tracer = make_tracer("gpu", False, ranges)
    with tracer.span("launch", samples=3):
        tracer.complete("batch", "record 0", 0.0, 1.0)
    assert said == ["launch", "end"], "profilers see the range all the same"
    assert trace_events([tracer.to_records()])["traceEvents"] == []


def test_a_lane_is_the_thread_unless_it_is_named() -> None:
    tracer = make_tracer("main", True)

    def deliver() -> None:
        with tracer.span("deliver"), tracer.span("copy", "another lane"):
            pass

    thread = threading.Thread(target=deliver, name="a thread")
    thread.start()
    thread.join()
    assert [span[:2] for span in tracer.to_records()[3]] == [("copy", "another lane"), ("deliver", "a thread")]


def test_ranges_are_loaded_where_a_profiler_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NSYS_PROFILING_SESSION_ID", raising=False)
    assert not Ranges.when_profiled().listening
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    assert Ranges.when_profiled().listening == Ranges.load().listening


def test_no_spans_make_an_empty_trace() -> None:
    assert trace_events([]) == {"traceEvents": [], "displayTimeUnit": "ms", "otherData": {"dropped": 0}}
    with pytest.raises(ValueError, match="0 spans"):
        Tracer("main", capacity=0)


@pytest.mark.parametrize("make", [Ranges.load, Ranges.silent])
def test_ranges_can_be_opened_with_nothing_listening(make: Callable[[], Ranges]) -> None:
    ranges = make()
    with ranges.span("a"), ranges.span("b"):
        pass


def test_ranges_without_cupy_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cupy.cuda", None)
    assert not Ranges.load().listening


def test_a_captured_window_is_closed_when_its_block_raises() -> None:
    seen: list[str] = []

    class Runtime:
        profilerStart = staticmethod(lambda: seen.append("start"))  # noqa: N815
        profilerStop = staticmethod(lambda: seen.append("stop"))  # noqa: N815

    class Cuda:
        runtime = Runtime

    class Cupy:
        cuda = Cuda

    with pytest.raises(KeyError), captured(Cupy):
        raise KeyError
    assert seen == ["start", "stop"]
