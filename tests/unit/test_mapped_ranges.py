"""What is read out of /proc/PID/maps, and ranges that are made one."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sharedfs.ledger.page_ranges import merged
from sharedfs.linux.mapping_table import MappingTable
from sharedfs.linux.procfs import Mapping

MAPS = b"""55d0c0000000-55d0c0001000 r--p 00000000 103:01 1234                       /usr/bin/python3
7f0000000000-7f0000004000 rw-s 00003000 00:2a 77                         /mnt/shared/a file
7f0000004000-7f0000005000 r--p 00000000 00:2a 18446744073709551615       /mnt/shared/b (deleted)
7f0000005000-7f0000006000 rw-p 00000000 00:2ab 5                         /another/device
7f0000006000-7f0000007000 rw-p 00000000 00:00 0
7f0000007000-7f0000008000 rw-p 00000000 00:00 0                          /fake 00:2a 9
7ffff0000000-7ffff0021000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_mappings_of_one_device() -> None:
    table = MappingTable.parse(MAPS, (0, 0x2A))
    assert table.mappings() == [
        Mapping(0x7F0000000000, 0x7F0000004000, True, 0x3000, 77),
        Mapping(0x7F0000004000, 0x7F0000005000, False, 0, 18446744073709551615),
    ]
    assert table.inodes() == {77, 18446744073709551615}
    assert table.pages_of(77).tolist() == [[3, 6]]
    assert [len(table.within(77, first, last)) for first, last in ((0, 2), (0, 3), (6, 9), (7, 9))] == [0, 1, 1, 0]
    assert MappingTable.of(reversed(table.mappings())).mappings() == table.mappings()
    assert MappingTable.parse(MAPS, (0x103, 1)).inodes() == {1234}
    assert len(MappingTable.parse(MAPS, (0, 0x2B))) == 0
    assert len(MappingTable.parse(b"", (0, 0x2A))) == 0


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)).map(lambda pair: (pair[0], sum(pair)))))
def test_merged_ranges_have_the_same_pages_in_order_and_apart(ranges: list[tuple[int, int]]) -> None:
    def pages(of: list[tuple[int, int]]) -> set[int]:
        return {page for first, last in of for page in range(first, last + 1)}

    result = merged(ranges)
    assert pages(result) == pages(ranges)
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(result))
