"""The XMP packet is valid, and is found in every format that carries one."""

from __future__ import annotations

import io
from xml.etree import ElementTree

from PIL import Image

from ourvidz import __version__
from ourvidz.media.provenance import read_source_type, xmp_packet

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, **options)
    return file.getvalue()


def test_the_packet_is_valid_rdf() -> None:
    """Search engines and editors parse it as RDF with the IPTC's namespace."""
    description = ElementTree.fromstring(xmp_packet("trainedAlgorithmicMedia")).find(f".//{RDF}Description")
    assert description is not None
    assert description.attrib == {
        f"{RDF}about": "",
        "{http://ns.adobe.com/xap/1.0/}CreatorTool": f"OurVidz worker {__version__}",
        f"{IPTC}DigitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    }


def test_the_source_type_is_read_from_every_format() -> None:
    """References may be JPEG files, and some tools write an XML element instead of an attribute."""
    packet = xmp_packet("compositeWithTrainedAlgorithmicMedia").encode()
    element = b"<a><Iptc4xmpExt:DigitalSourceType> http://x/y </Iptc4xmpExt:DigitalSourceType></a>"
    assert read_source_type(saved("JPEG", xmp=packet)).endswith("/compositeWithTrainedAlgorithmicMedia")
    assert read_source_type(saved("WEBP", xmp=packet)).endswith("/compositeWithTrainedAlgorithmicMedia")
    assert read_source_type(saved("WEBP", xmp=element)) == "http://x/y"


def test_a_file_without_a_packet_has_no_source_type() -> None:
    """A camera's picture must not count as generated."""
    assert read_source_type(saved("PNG")) is None
    assert read_source_type(saved("WEBP", xmp=b"<x/>")) is None
