"""The mark in every file that says it is machine-made: an XMP packet, never with prompts or user ids.

The words are the IPTC's: https://cv.iptc.org/newscodes/digitalsourcetype/
"""

from __future__ import annotations

import io
import re
from typing import Literal

from PIL import Image

from ourvidz import __version__

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
    """The full `DigitalSourceType` URI that a PNG, WEBP or JPEG carries; None when it carries none."""
    with Image.open(io.BytesIO(data)) as picture:
        packet = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    text = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else packet
    found = _MARK.search(text)
    return found.group(1) if found else None
