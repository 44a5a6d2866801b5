"""Long work beside the request pump: whoever asks for much leaves threads to the others."""

import threading

from sharedfs.common.lane import Lane


def test_one_party_has_half_of_the_threads_and_another_one_begins_at_once() -> None:
    broken: list[BaseException] = []
    lane, release, begun = Lane(4, "lane", broken.append), threading.Event(), threading.Semaphore(0)
    running: list[str] = []

    def work(party: str) -> None:
        running.append(party)
        begun.release()
        assert release.wait(30)

    for _ in range(10):
        lane.submit("many", lambda: work("many"))
    for _ in range(2):
        assert begun.acquire(timeout=30)
    lane.submit("few", lambda: work("few"))
    assert begun.acquire(timeout=30)
    assert running == ["many", "many", "few"], "ten wait, and two threads are all that one party has"
    release.set()
    lane.shutdown()
    assert sorted(running) == ["few"] + ["many"] * 10
    assert broken == []


def test_turns_are_taken_where_no_thread_is_left() -> None:
    broken: list[BaseException] = []
    lane, release, begun = Lane(1, "lane", broken.append), threading.Event(), threading.Event()
    done: list[str] = []

    def first() -> None:
        begun.set()
        assert release.wait(30)

    lane.submit("a", first)
    assert begun.wait(30)
    for _ in range(3):
        lane.submit("a", lambda: done.append("a"))
    lane.submit("b", lambda: done.append("b"))
    release.set()
    lane.shutdown()
    assert sorted(done) == ["a", "a", "a", "b"]
    assert done.index("b") < 2
    assert broken == []


def test_work_that_breaks_is_told_and_the_thread_goes_on() -> None:
    broken: list[BaseException] = []
    lane, done = Lane(1, "lane", broken.append), threading.Event()

    def breaks() -> None:
        raise ValueError("x")

    lane.submit("a", breaks)
    lane.submit("a", done.set)
    lane.shutdown()
    assert done.is_set()
    assert [str(error) for error in broken] == ["x"]
