"""Prints what gguf-py finds in a GGUF as one JSON document: the oracle for slmc's own reader.

    pip install gguf==0.19.0
    python tests/reference/gguf_dump.py MODEL.gguf > crates/slmc-formats/tests/golden/MODEL.json

Metadata values are [type, value]; an array is [type, element type, length, SHA-256], the digest taken over the
elements as little-endian bytes, strings as UTF-8 with a zero byte after each. Tensors are
[name, type, dims (fastest first), offset from the start of the file, bytes].
"""

import hashlib
import json
import sys

from gguf import GGUFReader, GGUFValueType


def described(field):
    names = [t.name.lower() for t in field.types]
    value = field.contents()
    if names[0] != "array":
        return [names[0], value.item() if hasattr(value, "item") else value]
    digest = hashlib.sha256()
    for element, index in zip(value, field.data):
        if field.types[-1] == GGUFValueType.STRING:
            digest.update(element.encode() + b"\0")
        else:
            digest.update(field.parts[index].tobytes())
    return ["array", names[-1], len(value), digest.hexdigest()]


def main():
    reader = GGUFReader(sys.argv[1])
    # Fields named GGUF.* are the preamble's counts, not metadata.
    metadata = {name: described(f) for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = [
        [t.name, t.tensor_type.name.lower(), t.shape.tolist(), int(t.data_offset), int(t.n_bytes)]
        for t in reader.tensors
    ]
    head = {"version": int(reader.fields["GGUF.version"].parts[-1][0]), "alignment": reader.alignment}
    lines = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    for key, rows in (("metadata", [[k, *v] for k, v in metadata.items()]), ("tensors", tensors)):
        lines.append(f'"{key}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    print("{\n" + ",\n".join(lines) + "\n}")


main()
