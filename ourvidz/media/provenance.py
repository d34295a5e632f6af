"""The mark in every file that says it is machine-made: an XMP packet, never with prompts or user ids.

The words are the IPTC's: https://cv.iptc.org/newscodes/digitalsourcetype/
"""

from __future__ import annotations

import io
import re
from typing import Literal

from PIL import Image

from ourvidz import __version__
from ourvidz.media.boxes import xmp_in

Source = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
"""Made by a model alone, or made by a model from somebody's picture."""

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"

_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about=""
 xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmp:CreatorTool="OurVidz worker {version}"
 Iptc4xmpExt:DigitalSourceType="{vocabulary}{source}"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""

_MARK = re.compile(r"DigitalSourceType(?:\s*=\s*[\"']|\s*>)\s*([^\"'<\s]+)")


def xmp_packet(source: Source) -> str:
    """The XMP packet for a file of this source."""
    return _PACKET.format(version=__version__, vocabulary=VOCABULARY, source=source)


def source_type_of(data: bytes) -> str | None:
    """The full `DigitalSourceType` URI that a PNG, WEBP, JPEG or MP4 carries; None when it carries none."""
    found = _MARK.search(_packet_of(data))
    return found.group(1) if found else None


def _packet_of(data: bytes) -> str:
    """The XMP packet in a file; empty when it has none."""
    if data[4:8] == b"ftyp":
        return xmp_in(data) or ""
    with Image.open(io.BytesIO(data)) as picture:
        packet = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    return packet.decode("utf-8", "replace") if isinstance(packet, bytes) else packet
