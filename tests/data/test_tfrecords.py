import random
import re
import struct

import pytest

from dcls.data.tfrecords import TFRecordFile, crc32c
from dcls.errors import DataError
from tests.data.records import crc32c as bitwise
from tests.data.records import delimited, example, framed, masked, varint

EXAMPLES = [
    {"image": [b"\x00\xff" * 400, b""], "label": [0, 7, -1, 2**63 - 1, -(2**63)], "weights": [0.5, -1.25]},
    {"label": [999]},
]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "val-0.tfrecords"
    path.write_bytes(b"".join(framed(example(each)) for each in EXAMPLES))
    return path


def test_the_checksum_has_the_published_check_value_and_is_the_bitwise_one_at_any_length():
    assert crc32c(b"123456789") == 0xE3069283
    lots = random.Random(0).randbytes(3000)
    for length in (*range(40), 1023, 1024, 1025, 3000):
        assert crc32c(lots[:length]) == bitwise(lots[:length])


@pytest.mark.parametrize("packed", [True, False])
def test_examples_are_read_as_written(tmp_path, packed):
    path = tmp_path / "a"
    path.write_bytes(b"".join(framed(example(each, packed)) for each in EXAMPLES))
    file = TFRecordFile(path)
    assert [file[number] for number in range(len(file))] == EXAMPLES


def test_fields_of_later_versions_are_passed_over(tmp_path):
    later = varint(8 * 9) + varint(300) + varint(8 * 10 + 1) + bytes(8) + delimited(11, b"more")
    path = tmp_path / "a"
    path.write_bytes(framed(later + example(EXAMPLES[1]) + later))
    assert TFRecordFile(path)[0] == EXAMPLES[1]


def test_a_file_cut_anywhere_is_refused_with_found_and_expected(written):
    whole = written.read_bytes()
    first = len(framed(example(EXAMPLES[0])))
    length = len(example(EXAMPLES[0])) + 4
    for kept, found in (
        (7, "the header at byte 0 has 7 bytes, expected 12"),
        (12, f"the record at byte 12 has 0 bytes, expected {length}"),
        (first - 1, f"the record at byte 12 has {length - 1} bytes, expected {length}"),
        (first + 3, f"the header at byte {first} has 3 bytes, expected 12"),
    ):
        written.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=re.escape(f"{written} is cut short: {found}")):
            TFRecordFile(written)


def test_a_flipped_bit_is_found_wherever_it_is(written):
    whole = written.read_bytes()
    for place in (0, 7, 9, 12, 300, len(framed(example(EXAMPLES[0]))) - 1):
        written.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"val-0.*is damaged: .* have the checksum 0x\w{8}, expected 0x\w{8}"):
            TFRecordFile(written)[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x0b", "wire type 3"),
        (b"\x0a\x05ab", "a field has 2 bytes, expected 5"),
        (b"\xff" * 11, "a number has no end"),
        (b"\x08\x05", "the number 5 where bytes belong"),
        (delimited(1, delimited(1, delimited(2, delimited(2, delimited(1, b"abc"))))), "buffer size"),
        (delimited(1, delimited(1, delimited(1, b"\xff"))), "utf-8"),
    ],
)
def test_what_is_no_example_is_said_with_its_place(tmp_path, data, reason):
    path = tmp_path / "a"
    path.write_bytes(framed(data))
    with pytest.raises(DataError, match=rf"a: the record at byte 12 is no tf.train.Example: .*{reason}"):
        TFRecordFile(path)[0]


def test_what_cannot_be_opened_is_said(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        TFRecordFile(tmp_path / "none")


def test_a_length_beyond_the_file_reserves_no_memory(tmp_path):
    path = tmp_path / "a"
    length = struct.pack("<Q", 2**50)
    path.write_bytes(length + masked(length))
    with pytest.raises(DataError, match=f"has 0 bytes, expected {2**50 + 4}"):
        TFRecordFile(path)
