"""YAML 1.2 with lines: numbers, texts, and everything that is no document."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.document import as_numbers, parse_value, read_document
from img2img_recon.support.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0),
        ("1e-3", 0.001),
        ("-.5", -0.5),
        ("010", 10),
        ("0x1F", 31),
        ("true", True),
        ("null", None),
        ("~", None),
        # YAML 1.1 has numbers, dates and truths here
        ("24:00:00", "24:00:00"),
        ("1-12:00:00", "1-12:00:00"),
        ("2024-02-30", "2024-02-30"),
        ("2024-01-31", "2024-01-31"),
        ("yes", "yes"),
        ("off", "off"),
        ("=", "="),
        ("'1e3'", "1e3"),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text, value):
    read = as_numbers(parse_value(text))
    assert read == value
    assert type(read) is type(value)


def test_numbers_know_how_they_were_written():
    account, share = parse_value("[0012345, 1e3]")
    assert (str(account), account.value) == ("0012345", 12345)
    assert (str(share), share.value) == ("1e3", 1000.0)


BAD = [
    ("a: 1\na: 2\n", "f.yaml:2: a: given twice$"),
    ("a: {b: &x [1, *x]}\n", r"f.yaml:1: a.b\[1\]: refers to itself$"),
    ("a: !!binary QQ==\n", "f.yaml:1: a: unknown tag .*binary$"),
    ("a: 1\nb: !thing {}\n", "f.yaml:2: b: unknown tag !thing$"),
    ("? [a, b]\n: 1\n", "f.yaml:1: given a list or mapping as a key, allowed: text$"),
    ("a: [\n", "f.yaml:2: not valid YAML"),
    ("a: 1\n--- \nb: 2\n", r"f.yaml:\d: not valid YAML"),
    ("a: *nothing\n", "f.yaml:1: not valid YAML .*nothing"),
    ("a: " + "[" * 2000, "f.yaml: not valid YAML .nested too deeply.$"),
    ("a: \0", "f.yaml: not valid YAML .*unacceptable character"),
    ("just text", "f.yaml:1: expected the keys of a sweep"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[text[:12] for text, _ in BAD])
def test_what_is_no_document_is_one_line(tmp_path, text, message):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_document(tmp_path / "f.yaml")
    assert "\n" not in str(caught.value)


def test_references_that_multiply_come_to_an_end(tmp_path):
    rows = ["a0: &a0 [x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (tmp_path / "f.yaml").write_text("\n".join(rows))
    with pytest.raises(InputError, match="more than 1,000,000 values"):
        read_document(tmp_path / "f.yaml")


@settings(max_examples=300, deadline=None)
@given(st.text(r"""ab:-[]{},&*!|>\\"'#%@`? 012.e~=<é""" + "\n\t", max_size=40))
def test_any_text_is_a_document_or_one_line(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, encoding="utf-8")
    said = ""
    try:
        assert isinstance(read_document(file).content, dict)
    except InputError as error:
        said = str(error)
    assert not said or (said.startswith(str(file)) and "\n" not in said)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "f.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(InputError, match=r"f\.yaml: cannot be read"):
        read_document(tmp_path / "f.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_document(tmp_path)
