"""Threads and processes that store counters all over a mapped file, and tell which ones ever went back: lost stores.

What is here as text runs in an agent (tests/support/agent.py). Each storer has a word of its own in each page.
"""

from tests.support.tenants import Agent, wait_until

PAGE = 4096

_STORER = f"""
import struct, time
go_on, lost, turns = True, [], {{}}
def store(slot, pages):
    "In this process, through its mapping m."
    count = 0
    while go_on:
        count += 1
        for place in range(slot * 64, pages * {PAGE}, {PAGE}):
            was = int.from_bytes(m[place:place + 4], 'little')
            if was != count - 1: lost.append((slot, place, was, count))
            m[place:place + 4] = count.to_bytes(4, 'little')
        turns[slot] = count
libc = ctypes.CDLL(None, use_errno=True)
class Part(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
def transfer(call, process, buffer, address, slot, first, pages):
    local = Part(ctypes.addressof(buffer), 4 * pages)
    remote = (Part * pages)(*(Part(address + (first + page) * {PAGE} + slot * 64, 4) for page in range(pages)))
    assert call(process, ctypes.byref(local), 1, remote, pages, 0) == 4 * pages, os.strerror(ctypes.get_errno())
def store_in(process, address, slot, pages, step=512):
    "In another process's memory: process_vm_writev(2)."
    count, found = 0, (ctypes.c_uint32 * step)()
    while go_on:
        count += 1
        for first in range(0, pages, step):
            transfer(libc.process_vm_readv, process, found, address, slot, first, step)
            lost.extend((slot, first + page, was, count) for page, was in enumerate(found) if was != count - 1)
            stored = (ctypes.c_uint32 * step)(*[count] * step)
            transfer(libc.process_vm_writev, process, stored, address, slot, first, step)
        turns[slot] = count
workers = []
def begin(work, *arguments):
    workers.append(threading.Thread(target=work, args=arguments)); workers[-1].start()
"""


class Storers:
    """Stores in the first `pages` pages of what agents have mapped as `m`. A context: they stop at its end."""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._agents: list[Agent] = []
        self._slots = 1  # word 0 of each page is the test's own

    def begin(self, agent: Agent, threads: int = 1) -> None:
        self._prepare(agent)
        for _ in range(threads):
            agent.do(f"begin(store, {self._slots}, {self._pages})")
            self._slots += 1

    def begin_from_outside(self, agent: Agent, mapper: Agent) -> None:
        """`agent` stores in the memory of `mapper`, which has the file mapped."""
        self._prepare(agent)
        address = mapper.do("result = ctypes.addressof(ctypes.c_char.from_buffer(m))")
        agent.do(f"begin(store_in, {mapper.pid}, {address}, {self._slots}, {self._pages})")
        self._slots += 1

    def _prepare(self, agent: Agent) -> None:
        if agent not in self._agents:
            agent.do(_STORER)
            self._agents.append(agent)

    def wait_for_turns(self, more: int, seconds: float) -> None:
        """Until each has stored in all pages so often since now."""
        before = self._turns()
        wait_until(
            lambda: (
                len(self._turns()) == self._slots - 1
                and all(count >= before.get(slot, 0) + more for slot, count in self._turns().items())
            ),
            "all storers go on",
            seconds,
        )

    def _turns(self) -> dict[str, int]:
        turns: dict[str, int] = {}
        for agent in self._agents:
            found = agent.do("result = dict(turns)")
            assert isinstance(found, dict)
            turns |= found
        return turns

    def end(self) -> list[object]:
        """Stop them; which stores were lost."""
        lost: list[object] = []
        for agent in self._agents:
            agent.do("go_on = False\nfor worker in workers: worker.join()")
            found = agent.do("result = lost")
            assert isinstance(found, list)
            lost += found
        self._agents.clear()
        return lost
