# SPDX-License-Identifier: MIT
"""bench/malloc/loads/objects.py - dictionaries, lists, texts and JSON; prints a digest.

For PYTHONMALLOC=malloc, without which Python has small objects from an allocator of its own."""
import hashlib
import json
import random

r = random.Random(1)
digest = hashlib.sha256()
kept = {}
for i in range(60000):
    key = r.randrange(30000)
    kept[key] = {"key": key, "name": f"object {i}", "list": [i, str(i), i / 7], "text": "x" * (i % 500)}
    if i % 15000 == 0:
        text = json.dumps(kept, sort_keys=True)
        digest.update(text.encode())
        kept = {int(k): v for k, v in json.loads(text).items()}
words = sorted(f"{r.randrange(1 << 40):x}" for _ in range(60000))
digest.update(" ".join(words).encode())
print(digest.hexdigest())
