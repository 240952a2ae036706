"""Headers against the two programs that must read them: ismrmrd's parser and fastMRI's dataset."""

import h5py
import numpy as np
import pytest
from fastmri.data.mri_data import SliceDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmri_plugin.headers import Header, read_header, write_header
from img2img_recon.support.errors import InputError

HEADER = Header(encoded_size=(640, 368, 1), recon_size=(320, 310), ky_center=160, ky_max=321)


def test_ismrmrd_reads_what_is_written():
    from ismrmrd import xsd

    xml = write_header(HEADER, num_coils=15, pixel_size_mm=(0.5, 0.4, 3.0), protocol="CORPD_FBK")
    parsed = xsd.CreateFromDocument(xml)
    encoding = parsed.encoding[0]
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    limits = encoding.encodingLimits.kspace_encoding_step_1
    size = encoded.matrixSize
    assert (size.x, size.y, size.z) == (640, 368, 1)
    assert (recon.matrixSize.x, recon.matrixSize.y, recon.matrixSize.z) == (320, 310, 1)
    assert (limits.minimum, limits.center, limits.maximum) == (0, 160, 321)
    fov = encoded.fieldOfView_mm
    assert (fov.x, fov.y, fov.z) == pytest.approx((320.0, 147.2, 3.0))
    assert parsed.acquisitionSystemInformation.receiverChannels == 15
    assert parsed.measurementInformation.protocolName == "CORPD_FBK"
    assert parsed.experimentalConditions.H1resonanceFrequency_Hz == pytest.approx(127.7e6, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    encoded=st.tuples(*[st.integers(1, 900)] * 3),
    recon=st.tuples(*[st.integers(1, 900)] * 2),
    center=st.integers(0, 400),
    maximum=st.integers(0, 900),
)
def test_round_trip(encoded, recon, center, maximum):
    header = Header(encoded, recon, center, maximum)
    xml = write_header(header)
    assert read_header(xml) == header
    assert read_header(xml.encode()) == header


@pytest.mark.parametrize("header", [HEADER, Header((64, 37, 1), (32, 30), 15, 29)])
def test_fastmri_sees_the_same_numbers(tmp_path, header):
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as volume:
        volume["ismrmrd_header"] = write_header(header)
        volume["kspace"] = np.zeros((2, 4, 4), np.complex64)
    metadata = SliceDataset(tmp_path, "singlecoil").raw_samples[0].metadata
    ours = read_header(write_header(header))
    assert metadata["encoding_size"] == ours.encoded_size
    assert metadata["recon_size"][:2] == ours.recon_size
    assert (metadata["padding_left"], metadata["padding_right"]) == ours.acquired_columns


@settings(max_examples=25, deadline=None)
@given(width=st.integers(2, 400), data=st.data())
def test_of_columns_is_the_inverse_of_acquired_columns(width, data):
    left = data.draw(st.integers(0, width // 2))
    right = data.draw(st.integers(width // 2 + 1, width))
    header = Header.of_columns((256, width), (128, 128), (left, right))
    assert header.acquired_columns == (left, right)
    assert header.encoded_size == (256, width, 1)


@pytest.mark.parametrize("columns", [(-1, 5), (6, 10), (0, 5), (0, 11)])
def test_of_columns_needs_the_centre(columns):
    with pytest.raises(ValueError, match="miss the centre"):
        Header.of_columns((8, 10), (8, 8), columns)


REQUIRED = {
    "encodedSpace/matrixSize/x": "<x>640</x>",
    "encodedSpace/matrixSize/y": "<y>368</y>",
    "encodedSpace/matrixSize/z": "<z>1</z>",
    "reconSpace/matrixSize/x": "<x>320</x>",
    "reconSpace/matrixSize/y": "<y>310</y>",
    "kspace_encoding_step_1/center": "<center>160</center>",
    "kspace_encoding_step_1/maximum": "<maximum>321</maximum>",
}


@pytest.mark.parametrize("element", REQUIRED)
def test_a_missing_element_is_named(element):
    xml = write_header(HEADER).replace(REQUIRED[element], "", 1)
    with pytest.raises(InputError, match=f"no element encoding/.*{element}$") as caught:
        read_header(xml)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["abc", "", "0", "-3", "1.5"])
def test_a_wrong_size_is_named(value):
    xml = write_header(HEADER).replace("<y>368</y>", f"<y>{value}</y>")
    with pytest.raises(InputError, match="encodedSpace/matrixSize/y"):
        read_header(xml)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an XML document"),
        (b"\xff\xfe", "not an XML document"),
        ("<half", "not an XML document"),
        (7, "not an XML document"),
        ("<a/>", "root is 'a'"),
        (write_header(HEADER).replace("www.ismrm.org", "www.example.org"), "root is"),
    ],
)
def test_what_is_no_header_is_refused(content, message):
    with pytest.raises(InputError, match=message):
        read_header(content)


def test_elements_of_other_programs_are_no_obstacle():
    xml = write_header(HEADER).replace("</ismrmrdHeader>", "<vendor>1</vendor></ismrmrdHeader>")
    assert read_header(xml) == HEADER
